from .causal import (
    causal_effect_strength as causal_effect_strength,
)
from .causal import (
    circuit_modularity as circuit_modularity,
)
from .causal import (
    intervention_specificity as intervention_specificity,
)
from .scores import LatentScores as LatentScores
from .scores import Score as Score
