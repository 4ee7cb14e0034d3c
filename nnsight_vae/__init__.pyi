from . import (
    adapters as adapters,
)
from . import (
    causal as causal,
)
from . import (
    circuits as circuits,
)
from . import (
    datasets as datasets,
)
from . import (
    metrics as metrics,
)
from . import (
    models as models,
)
from . import (
    plots as plots,
)
from . import (
    readouts as readouts,
)
from . import (
    report as report,
)
from .adapters.adapt import adapt as adapt
from .circuits.export import export as export
from .circuits.export import read_circuit as read_circuit
from .circuits.scores import score_edges as score_edges
from .circuits.search import extract_circuit as extract_circuit
from .effects import Effects as Effects
from .engine import Output as Output
from .engine import intervene as intervene
from .errors import (
    AdapterError as AdapterError,
)
from .errors import (
    CircuitError as CircuitError,
)
from .errors import (
    DataError as DataError,
)
from .errors import (
    InterventionError as InterventionError,
)
from .errors import (
    NnsightVaeError as NnsightVaeError,
)
from .errors import (
    NnsightVaeWarning as NnsightVaeWarning,
)
from .errors import (
    ReadoutError as ReadoutError,
)
from .errors import (
    SiteError as SiteError,
)
from .interventions import (
    Add as Add,
)
from .interventions import (
    Intervention as Intervention,
)
from .interventions import (
    Mean as Mean,
)
from .interventions import (
    Noise as Noise,
)
from .interventions import (
    Quantize as Quantize,
)
from .interventions import (
    Resample as Resample,
)
from .interventions import (
    Scale as Scale,
)
from .interventions import (
    Set as Set,
)
from .interventions import (
    Swap as Swap,
)
from .interventions import (
    Zero as Zero,
)
from .levels.inputs import manipulate_inputs as manipulate_inputs
from .levels.latent_metrics import latent_metrics as latent_metrics
from .levels.latents import perturb_latents as perturb_latents
from .levels.mediation import mediate as mediate
from .levels.patching import patch_activations as patch_activations
from .loading import load as load
from .mediation_result import Mediation as Mediation
from .mediation_result import Proportion as Proportion
from .models import zoo as zoo
from .pairs import Pairs as Pairs
from .posterior import Posterior as Posterior
from .report.analysis import analyze as analyze
from .sites import Selection as Selection
from .sites import Site as Site
from .sites import Unit as Unit
from .vae import VAE as VAE

__version__: str
