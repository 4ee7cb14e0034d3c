from . import known as known
from .branching import Separation as Separation, Separations as Separations, separation as separation
from .circuit_tests import hypothesis_tests as hypothesis_tests
from .communities import Modularity as Modularity, modularity as modularity
from .degrees import Hub as Hub, Hubs as Hubs, PolysemanticHub as PolysemanticHub, hubs as hubs
from .edges import EdgeScores as EdgeScores
from .enrichment import Motif as Motif, Motifs as Motifs, motifs as motifs
from .evaluate import faithfulness as faithfulness
from .export import read_circuit as read_circuit
from .faithfulness_result import Faithfulness as Faithfulness
from .greedy import Greedy as Greedy
from .knocked_out import Knockouts as Knockouts, knockouts as knockouts
from .overlaps import Overlap as Overlap, Overlaps as Overlaps, overlap as overlap
from .pipeline import NullArm as NullArm, PipelineNull as PipelineNull, pipeline_null as pipeline_null
from .pruning import Prune as Prune
from .rules import FDR as FDR, Mass as Mass, TopK as TopK
from .scores import score_edges as score_edges
from .screening import Screen as Screen
from .search import circuit_from as circuit_from, extract_circuit as extract_circuit
from .selectivity import Specificity as Specificity, UnitSpecificity as UnitSpecificity, specificity as specificity
from .several import extract_circuits as extract_circuits, union as union
from .unit_pictures import thumbnails as thumbnails
from .unlearned import reinitialised as reinitialised
from .verdicts import CircuitTests as CircuitTests, Outcome as Outcome
