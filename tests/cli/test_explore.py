import pytest

from serve_app.cli.explore import chosen_of


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("7, 9", (7, 9)),
        ("1 4", (7, 2)),
        ("2", (2,)),
        ("7 1", None),
        ("ALL", (7, 8, 9, 2)),
        ("none", ()),
        ("", None),
        ("5", None),
        ("0", None),
        ("-1", None),
        ("all 7", None),
    ],
)
def test_an_answer_names_seeds_or_else_places(answer: str, chosen: tuple[int, ...] | None) -> None:
    assert chosen_of(answer, [7, 8, 9, 2]) == chosen
