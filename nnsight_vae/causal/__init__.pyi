from .abstraction import interchange_accuracy as interchange_accuracy
from .discovery import discovered_graph as discovered_graph
from .distances import ancestor_aid as ancestor_aid, parent_aid as parent_aid, shd as shd, sid as sid
from .equivalence import cpdag as cpdag
from .factor_circuits import FactorCircuits as FactorCircuits, factor_circuits as factor_circuits
from .graph_scores import GraphComparison as GraphComparison, GraphScores as GraphScores
from .graphs import compare as compare
from .interchange_result import InterchangeAccuracy as InterchangeAccuracy
from .mapping import FactorMap as FactorMap, map_factors as map_factors
from .model_graph import factor_graph as factor_graph
from .rotation import Rotation as Rotation, learn_rotation as learn_rotation
from .scm import SCM as SCM, Mechanism as Mechanism
