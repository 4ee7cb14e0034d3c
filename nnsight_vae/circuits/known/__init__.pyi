from .benchmark import METHODS as METHODS, MODELS as MODELS, Benchmark as Benchmark, benchmark as benchmark
from .circuit import EdgeGroup as EdgeGroup, KnownCircuit as KnownCircuit, Projection as Projection, Task as Task
from .dags import random_dag as random_dag
from .edge_strict import edge_strict as edge_strict
from .glass import glass_box as glass_box
from .masked import masked as masked
