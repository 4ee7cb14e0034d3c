from .all_metrics import Disentanglement as Disentanglement, disentanglement as disentanglement
from .correlated import (
    mcc as mcc,
    support_distance as support_distance,
    total_correlation as total_correlation,
    wasserstein_correlation as wasserstein_correlation,
)
from .fronts import (
    activity as activity,
    causal_effect_strength as causal_effect_strength,
    circuit_modularity as circuit_modularity,
    intervention_specificity as intervention_specificity,
    latent_response_matrix as latent_response_matrix,
)
from .generative import (
    causal_disentanglement as causal_disentanglement,
    counterfactual_generativeness as counterfactual_generativeness,
)
from .information import mig as mig, modularity as modularity
from .latent_activity import Activity as Activity
from .mec import infomec as infomec
from .polysemanticity_indices import selectivity_indices as selectivity_indices
from .polysemanticity_verdicts import UnitVerdicts as UnitVerdicts, polysemanticity as polysemanticity
from .predictive import dci as dci, explicitness as explicitness, sap as sap
from .robustness import irs as irs, unconfoundedness as unconfoundedness
from .scores import LatentMatrix as LatentMatrix, LatentScores as LatentScores, Score as Score
from .tables import FactorScore as FactorScore
from .votes import beta_vae_score as beta_vae_score, factor_vae_score as factor_vae_score, grid_sampler as grid_sampler
