from .fronts import (
    activity as activity,
    causal_effect_strength as causal_effect_strength,
    circuit_modularity as circuit_modularity,
    intervention_specificity as intervention_specificity,
    latent_response_matrix as latent_response_matrix,
)
from .latent_activity import Activity as Activity
from .scores import LatentMatrix as LatentMatrix, LatentScores as LatentScores, Score as Score
