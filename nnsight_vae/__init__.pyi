from . import (
    adapters as adapters,
    attribution as attribution,
    causal as causal,
    circuits as circuits,
    datasets as datasets,
    metrics as metrics,
    models as models,
    plots as plots,
    readouts as readouts,
    report as report,
)
from .adapters.adapt import adapt as adapt
from .circuits.files.export import export as export, read_circuit as read_circuit
from .circuits.scoring.scores import score_edges as score_edges
from .circuits.selection.search import extract_circuit as extract_circuit
from .doses import Doses as Doses
from .engine import Output as Output, intervene as intervene
from .errors import (
    AdapterError as AdapterError,
    CircuitError as CircuitError,
    DataError as DataError,
    InterventionError as InterventionError,
    NnsightVaeError as NnsightVaeError,
    NnsightVaeWarning as NnsightVaeWarning,
    PriorError as PriorError,
    ReadoutError as ReadoutError,
    SiteError as SiteError,
)
from .interventions import (
    Add as Add,
    Intervention as Intervention,
    Mean as Mean,
    Noise as Noise,
    Quantize as Quantize,
    Resample as Resample,
    Scale as Scale,
    Set as Set,
    Swap as Swap,
    Zero as Zero,
)
from .levels.doses import dose_response as dose_response
from .levels.inputs import manipulate_inputs as manipulate_inputs
from .levels.latent_metrics import latent_metrics as latent_metrics
from .levels.latents import perturb_latents as perturb_latents
from .levels.mediation import mediate as mediate
from .levels.patching import patch_activations as patch_activations
from .levels.paths import path_effects as path_effects
from .levels.shapley import sequential_mediators as sequential_mediators, shapley_mediators as shapley_mediators
from .loading import load as load
from .models import zoo as zoo
from .pairs import Pairs as Pairs
from .posterior import Posterior as Posterior
from .report.analysis import analyze as analyze
from .results.dose_response import DoseResponse as DoseResponse
from .results.effects import Effects as Effects
from .results.mediation import Mediation as Mediation
from .results.proportion import Proportion as Proportion
from .sites import Selection as Selection, Site as Site, Unit as Unit
from .vae import VAE as VAE

__version__: str
