"""Layers by the names of their modules."""

from router.base.module_paths import deeper, in_layers, numbers

PATHS = [
    "encoder.block.0.layer.1.q", "encoder.block.1.layer.0.q", "decoder.block.1.layer.2.wo", "decoder.block.2.layer.1.k",
    "project_out",
]  # fmt: skip


def test_the_first_number_is_the_layers_in_every_stack() -> None:
    assert in_layers(PATHS, 1, 1) == PATHS[1:3]
    assert in_layers(PATHS, 0, 1) == PATHS[:3]
    assert in_layers(PATHS, 0, 9) == PATHS[:4]  # what stands in no layer is in none of them
    assert in_layers(PATHS, 3, 9) == []
    assert (numbers(PATHS), numbers(PATHS[4:])) == ([0, 1, 2], [])


def test_the_upper_half_of_a_base_is_deep_all_of_it() -> None:
    layers = [f"model.layers.{at}.q_proj" for at in range(30)]
    assert deeper(in_layers(layers, 15, 29)) == layers[15:] == deeper(layers)
