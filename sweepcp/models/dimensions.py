"""The dimensions of a model in a folder, by any names that its configuration has for them."""

from pathlib import Path

from sweepcp.config.model_dimensions import ModelDimensions, dimensions_of
from sweepcp.errors import located
from sweepcp.models.files import count_elements, read_config, read_shards


def read_dimensions(folder: Path) -> ModelDimensions:
    """Return the dimensions of a model without loading its weights.

    A configuration with Llama's names is read as it is. One with other names (GPT-2), with the
    language model in a section of its own (models that also read images), or without the values
    that transformers has by default, is read by transformers, which takes seconds to import.

    Raises:
        InvalidInput: The configuration is not that of a causal LM, or does not state a size.
    """
    config = read_config(folder)
    if "text_config" not in config:
        with located(folder / "config.json"):
            dimensions = dimensions_of(config, count_elements(read_shards(folder)))
        if dimensions is not None:
            return dimensions
    from sweepcp.models.architecture import built_dimensions, empty_model, read_model_config

    with located(folder / "config.json"):
        return built_dimensions(empty_model(read_model_config(folder)))
