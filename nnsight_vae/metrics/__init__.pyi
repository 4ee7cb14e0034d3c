from .fronts import (
    causal_effect_strength as causal_effect_strength,
    circuit_modularity as circuit_modularity,
    intervention_specificity as intervention_specificity,
)
from .scores import LatentScores as LatentScores, Score as Score
