from .agreements import Agreement as Agreement, agreement as agreement
from .animation import save_animation as save_animation
from .base import Record as Record, VAEAttribution as VAEAttribution, record_of as record_of
from .baselines import Distribution as Distribution
from .checks import completeness as completeness, sensitivity as sensitivity
from .fidelity import infidelity as infidelity
from .forward import CaptumForward as CaptumForward, captum_forward as captum_forward
from .gradients import (
    DecoderIntegratedGradients as DecoderIntegratedGradients,
    LatentIntegratedGradients as LatentIntegratedGradients,
)
from .guards import guarded as guarded
from .jacobian import DecoderJacobian as DecoderJacobian, Jacobian as Jacobian
from .jacobian_sheet import plot_jacobian as plot_jacobian
from .label_free import LabelFree as LabelFree
from .layers import LatentConductance as LatentConductance, LatentGradCam as LatentGradCam
from .pictures import plot_attribution_atlas as plot_attribution_atlas, visualize as visualize
from .raw_layer import captum_layer as captum_layer
from .rules import refuse_method as refuse_method
from .sanity import implementation_invariance as implementation_invariance, model_randomisation as model_randomisation
from .shapley import LatentShapley as LatentShapley
from .shift import LatentShift as LatentShift, Shift as Shift
from .source import SourceIntegratedGradients as SourceIntegratedGradients
from .targets import Direction as Direction
from .units import unit_attributions as unit_attributions
