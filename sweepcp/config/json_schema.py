"""JSON schemas of files, with the docstring of each key as its description."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema


def described_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model; the descriptions of its keys are their docstrings."""
    return model.model_json_schema(schema_generator=_DescribedSchema)


class _DescribedSchema(GenerateJsonSchema):
    # `use_attribute_docstrings` does the same at every import, which all commands would wait for.
    def model_schema(self, schema: Any) -> dict[str, Any]:
        content = super().model_schema(schema)
        properties = content.get("properties", {})
        for key, text in _key_docstrings(schema["cls"]).items():
            if key in properties:
                properties[key]["description"] = text
        return content


def _key_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings below the fields of a class and of the classes it inherits from."""
    found: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if issubclass(parent, BaseModel) and parent is not BaseModel:
            found |= _own_docstrings(parent)
    return found


def _own_docstrings(model: type[BaseModel]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, following in pairwise(definition.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[field.target.id] = " ".join(following.value.value.split())
    return found
