from .elbo_bounds import check_elbo_bounds as check_elbo_bounds
from .findings import LAWS as LAWS
from .findings import BrokenBound as BrokenBound
from .findings import Finding as Finding
from .findings import Report as Report
