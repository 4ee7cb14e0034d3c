from .abstraction import InterchangeAccuracy as InterchangeAccuracy, interchange_accuracy as interchange_accuracy
from .factor_circuits import FactorCircuits as FactorCircuits, factor_circuits as factor_circuits
from .graphs import (
    GraphComparison as GraphComparison,
    ancestor_aid as ancestor_aid,
    compare as compare,
    shd as shd,
    sid as sid,
)
from .mapping import FactorMap as FactorMap, map_factors as map_factors
from .model_graph import factor_graph as factor_graph
from .rotation import Rotation as Rotation, learn_rotation as learn_rotation
from .scm import SCM as SCM, Mechanism as Mechanism
