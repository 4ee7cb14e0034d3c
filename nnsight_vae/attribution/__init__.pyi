from .base import Record as Record, VAEAttribution as VAEAttribution, record_of as record_of
from .baselines import Distribution as Distribution
from .forward import CaptumForward as CaptumForward, captum_forward as captum_forward
from .gradients import (
    DecoderIntegratedGradients as DecoderIntegratedGradients,
    LatentIntegratedGradients as LatentIntegratedGradients,
)
from .guards import guarded as guarded
from .label_free import LabelFree as LabelFree
from .layers import LatentConductance as LatentConductance, LatentGradCam as LatentGradCam
from .raw_layer import captum_layer as captum_layer
from .rules import refuse_method as refuse_method
from .source import SourceIntegratedGradients as SourceIntegratedGradients
from .targets import Direction as Direction
