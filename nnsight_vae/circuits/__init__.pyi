from . import known as known
from .drawing.unit_pictures import thumbnails as thumbnails
from .evaluation.circuit_tests import hypothesis_tests as hypothesis_tests
from .evaluation.evaluate import faithfulness as faithfulness
from .evaluation.faithfulness_result import Faithfulness as Faithfulness
from .evaluation.knocked_out import Knockouts as Knockouts, knockouts as knockouts
from .evaluation.verdicts import CircuitTests as CircuitTests, Outcome as Outcome
from .files.export import read_circuit as read_circuit
from .scoring.edges import EdgeScores as EdgeScores
from .scoring.scores import score_edges as score_edges
from .selection.greedy import Greedy as Greedy
from .selection.pruning import Prune as Prune
from .selection.rules import FDR as FDR, Mass as Mass, TopK as TopK
from .selection.screening import Screen as Screen
from .selection.search import circuit_from as circuit_from, extract_circuit as extract_circuit
from .selection.several import extract_circuits as extract_circuits, union as union
from .structure.branching import Separation as Separation, Separations as Separations, separation as separation
from .structure.communities import Modularity as Modularity, modularity as modularity
from .structure.degrees import Hub as Hub, Hubs as Hubs, PolysemanticHub as PolysemanticHub, hubs as hubs
from .structure.enrichment import Motif as Motif, Motifs as Motifs, motifs as motifs
from .structure.overlaps import Overlap as Overlap, Overlaps as Overlaps, overlap as overlap
from .structure.pipeline import NullArm as NullArm, PipelineNull as PipelineNull, pipeline_null as pipeline_null
from .structure.selectivity import (
    Specificity as Specificity,
    UnitSpecificity as UnitSpecificity,
    specificity as specificity,
)
from .structure.unlearned import reinitialised as reinitialised
