"""A report from results of any kind, in the order of readers' questions: how much, how fast, is it so, is it worse?"""

from collections.abc import Mapping, Sequence

from kvcalc.report.calculated import command, comparison, explained, growth, model_card, step_time, what_if_growth
from kvcalc.report.content import Command, Section, Story
from kvcalc.report.measured import check, predictions, profile
from kvcalc.report.read import Json, text


def tell(
    documents: Sequence[tuple[str, Json]], *, curves: Mapping[str, Sequence[Json]] | None = None, made_by: str
) -> Story:
    """The report.

    documents  command and object of each result
    curves     by model, comparisons of it with other attention at several contexts
    made_by    the line at the foot
    """
    sections: list[Section] = []
    grown = dict(curves or {})
    for estimate in _of(documents, "estimate"):
        card = model_card(estimate)
        model = text(estimate, "model.name")
        own = what_if_growth({model: grown.pop(model)}) if model in grown else []
        pictures = [block for section in own for block in section.blocks]
        blocks = [*card.blocks, *pictures, *step_time(estimate), *explained(estimate), Command(text=command(estimate))]
        sections.append(Section(title=card.title, blocks=blocks))
    sections += what_if_growth(grown)
    for document in _of(documents, "compare"):
        section = comparison(document)
        sections.append(Section(title=section.title, blocks=[*growth([document], exact=False), *section.blocks]))
    sections += [profile(document) for document in _of(documents, "profile")]
    sections += [predictions(document) for document in _of(documents, "predict")]
    sections += [check(document) for document in _of(documents, "check")]
    names = list(dict.fromkeys(_name(document) for _, document in documents))
    title = f"kvcalc: {', '.join(name for name in names if name)}" if any(names) else "kvcalc report"
    return Story(title=title, made_by=made_by, sections=sections)


def _of(documents: Sequence[tuple[str, Json]], command: str) -> list[Json]:
    return [document for name, document in documents if name == command]


def _name(document: Json) -> str:
    return text(document, "model.title") or text(document, "model.name")
