from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

import pyro_vae
from pyro_vae.system.version import package_version


def test_the_public_names_are_there():
    for name in pyro_vae.__all__:
        assert getattr(pyro_vae, name) is not None
        assert name in dir(pyro_vae)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No pyro_vae attribute vea"):
        _ = pyro_vae.vea


def test_import_is_light_and_sets_nothing():
    """Importing the package loads no torch, and using it loads no pyplot, ArviZ or scikit-learn."""
    code = (
        "import sys, pyro_vae; assert 'torch' not in sys.modules; "
        "import torch; state = torch.get_rng_state(); dtype = torch.get_default_dtype(); "
        "pyro_vae.VAE; pyro_vae.fit; pyro_vae.evidence; "
        "assert torch.get_default_dtype() == dtype and torch.equal(torch.get_rng_state(), state); "
        "heavy = {'matplotlib', 'arviz', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_public_name_of_evidence_is_a_module_too():
    """Else importing the module first would put it in the name's place."""
    from pyro_vae import evidence

    modules = {module.name for module in pkgutil.iter_modules(evidence.__path__)}
    assert not modules & set(evidence.__all__)
    assert len(evidence.__all__) == 45
    for name in evidence.__all__:
        assert getattr(evidence, name).__module__.startswith("pyro_vae.evidence."), name


def test_a_bare_clone_has_no_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("pyro_vae.system.version.version", missing)
    assert package_version() == "not installed"
