from .abstraction import InterchangeAccuracy as InterchangeAccuracy
from .abstraction import interchange_accuracy as interchange_accuracy
from .graphs import (
    GraphComparison as GraphComparison,
)
from .graphs import (
    ancestor_aid as ancestor_aid,
)
from .graphs import (
    compare as compare,
)
from .graphs import (
    shd as shd,
)
from .graphs import (
    sid as sid,
)
from .mapping import FactorMap as FactorMap
from .mapping import map_factors as map_factors
from .model_graph import factor_graph as factor_graph
from .scm import SCM as SCM
from .scm import Mechanism as Mechanism
