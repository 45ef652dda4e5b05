"""VBench's own code, from packages on PyPI that are installed without what they ask for.

    pip install --no-deps vbench==0.1.5 pyiqa decord opencv-python-headless torchvision

They pin old versions of other packages, and import some that random weights on a CPU do not need; these get empty
stand-ins. pyiqa's licence is non-commercial: it is for comparing on a machine, no requirement of anything.
"""

import importlib
import importlib.util
import pathlib
import sys
import types

import packaging.version
import pytest
import torch

INSTALL = "pip install --no-deps vbench==0.1.5"


class StandIn(types.ModuleType):
    """A module that is not installed."""


def vbench(name: str):
    """A module of the package `vbench`; skips the test without it."""
    if not _enter("vbench"):
        pytest.skip(f"needs VBench's code: {INSTALL}")
    _stand_in("timm.models.layers", DropPath=None)
    _stand_in("timm.models.registry", register_model=lambda function: function)
    _stand_in("pkg_resources", packaging=packaging)
    # It downloads its vocabulary when it is imported.
    sys.modules.setdefault("vbench.third_party.ViCLIP.simple_tokenizer", StandIn("", None))
    sys.modules["vbench.third_party.ViCLIP.simple_tokenizer"].SimpleTokenizer = lambda *_: None
    _stand_in("clip")
    _stand_in("omegaconf", OmegaConf=None)
    _stand_in("easydict", EasyDict=None)
    return importlib.import_module(f"vbench.{name}")


def musiq():
    """pyiqa's MUSIQ; skips the test without it."""
    if not all(map(_enter, ("pyiqa", "pyiqa.archs", "pyiqa.data", "pyiqa.utils"))):
        pytest.skip("needs pyiqa: pip install --no-deps pyiqa torchvision")
    pytest.importorskip("torchvision", reason="pyiqa needs torchvision: pip install --no-deps torchvision")
    return importlib.import_module("pyiqa.archs.musiq_arch").MUSIQ


def measures(name: str):
    """A module of VBench's measures; skips the test without a decoder that it imports."""
    for package in ("cv2", "decord", "torchvision"):
        reason = f"VBench's measures need {package}: {INSTALL} decord opencv-python-headless torchvision"
        pytest.importorskip(package, reason=reason)
    if name == "imaging_quality":
        musiq()
    return vbench(name)


def _define_operators():
    """Make a torchvision that was built for CUDA importable; the operators that it lacks are not called here."""
    spec = importlib.util.find_spec("torchvision")
    for library in pathlib.Path(spec.origin).parent.glob("_C*.so") if spec else ():
        try:
            torch.ops.load_library(library)
        except OSError:
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou) -> Tensor")


_define_operators()


def _enter(name: str) -> bool:
    """Make a package's modules importable without its __init__, which imports everything; False without it."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return False
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package
    return True


def _stand_in(name: str, **attributes):
    """An importable module of these attributes, unless there is a real one."""
    root, *rest = name.split(".")
    if not isinstance(sys.modules.get(root), StandIn) and importlib.util.find_spec(root) is not None:
        return
    for part in ("", *rest):
        root = f"{root}.{part}" if part else root
        sys.modules.setdefault(root, StandIn(root))
    vars(sys.modules[name]).update(attributes)
