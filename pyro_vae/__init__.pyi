from . import data as data
from . import distributions as distributions
from . import evidence as evidence
from . import handlers as handlers
from . import inference as inference
from . import models as models
from . import networks as networks
from . import report as report
from . import schedules as schedules
from . import testing as testing
from .inference.objectives.registry import elbo as elbo
from .inference.svi.svi import SVI as SVI
from .inference.training.fit import fit as fit
from .inference.weights.log_weights import log_weights as log_weights
from .models.vae import VAE as VAE
from .runs.run import load as load

__version__: str
