from .abstraction import interchange_accuracy as interchange_accuracy
from .conditional_randomization import (
    conditional_pvalues as conditional_pvalues,
    linear_conditional as linear_conditional,
)
from .discovery import discovered_graph as discovered_graph
from .distances import ancestor_aid as ancestor_aid, parent_aid as parent_aid, shd as shd, sid as sid
from .equivalence import cpdag as cpdag
from .factor_answers import FactorAnswers as FactorAnswers
from .factor_circuits import FactorCircuits as FactorCircuits, factor_circuits as factor_circuits
from .factor_map import FactorMap as FactorMap
from .graph_scores import GraphComparison as GraphComparison, GraphScores as GraphScores
from .graphs import compare as compare
from .interchange_result import InterchangeAccuracy as InterchangeAccuracy
from .mapping import map_factors as map_factors
from .model_graph import factor_graph as factor_graph
from .rotation import learn_rotation as learn_rotation
from .rotation_result import Rotation as Rotation
from .scm import SCM as SCM, Mechanism as Mechanism
from .unit_verdict import unit_verdicts as unit_verdicts
