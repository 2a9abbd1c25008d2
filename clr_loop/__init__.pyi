"""The public names of the package, and the modules that they come from: `__init__.py` and type checkers read it."""

from . import data as data
from . import loop as loop
from . import runs as runs
from . import schedules as schedules
from . import studies as studies
from .data import Dataset as Dataset
from .data import Examples as Examples
from .data import StreamedDataset as StreamedDataset
from .data import load as load
from .data.models import build_model as build_model
from .loop.feeds import Feed as Feed
from .loop.loop import TrainLoop as TrainLoop
from .loop.options import StepOptions as StepOptions
from .runs.fit import fit as fit
from .runs.models import load_run as load_run
from .runs.options import RunOptions as RunOptions
from .runs.snapshots import ensemble as ensemble
from .schedules import Constant as Constant
from .schedules import CosineDecay as CosineDecay
from .schedules import CosineRestarts as CosineRestarts
from .schedules import Cyclic as Cyclic
from .schedules import ExponentialDecay as ExponentialDecay
from .schedules import ExponentialRamp as ExponentialRamp
from .schedules import ExpRange as ExpRange
from .schedules import LinearDecay as LinearDecay
from .schedules import LinearRamp as LinearRamp
from .schedules import OneCycle as OneCycle
from .schedules import OneTriangle as OneTriangle
from .schedules import Triangular as Triangular
from .schedules import Triangular2 as Triangular2
from .schedules import describe as describe
from .schedules import join as join
from .schedules.for_keras import CyclicLR as CyclicLR
from .schedules.for_keras import as_keras as as_keras
from .silence import quiet as quiet
from .studies.compare_schedules import compare_schedules as compare_schedules
from .studies.find_rate import find_rate as find_rate

__version__: str
