"""Low- and cross-resolution person re-identification on fast-reid."""

from typing import TYPE_CHECKING, Any

from lrreid_ext.compat import prepare_host

if TYPE_CHECKING:
    from lrreid_ext.api import (
        TrainedModel,
        build_dataset,
        evaluate,
        load_model,
        push_to_hub,
        save_pretrained,
    )

__version__ = "0.1.0"
__all__ = [
    "TrainedModel",
    "build_dataset",
    "evaluate",
    "load_model",
    "push_to_hub",
    "save_pretrained",
]

prepare_host()


def __getattr__(name: str) -> Any:
    # On first use: the API and everything it needs take a while to import.
    if name in __all__:
        from lrreid_ext import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
