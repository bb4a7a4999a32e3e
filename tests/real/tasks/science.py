"""Diagnoses (ICD-10-CM), compounds (chemicals), devices (pci.ids) and emoji."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.real.packages import file_of
from tests.real.tasks.task import Row, Task, balanced

NAME = 40
"""Most characters of a compound's name."""


def diagnoses(root: ET.Element) -> list[Row]:
    """Ask which chapter of the classification a diagnosis stands in; its subdivisions lie on its side."""
    rows = []
    for chapter in root.iter("chapter"):
        title = re.sub(r" \(.*", "", chapter.findtext("desc", ""))
        for section in chapter.iter("section"):
            for disease in section.findall("diag"):
                family = disease.findtext("name", "")
                texts = (each.findtext("desc", "") for each in disease.iter("diag"))
                rows += [Row(text, (title,), groups=(f"icd {family}",)) for text in texts if text]
    return balanced(rows, least=250)


def compounds(lines: Iterable[str]) -> Iterator[Row]:
    """Pair the systematic name of a compound with its formula."""
    for line in lines:
        fields = line.rstrip("\n").split("\t")
        if len(fields) > 8 and 0 < len(fields[8]) <= NAME:
            yield Row(fields[8], (fields[2],))


def devices(lines: Iterable[str]) -> list[Row]:
    """Ask who makes a device, where its name does not say so."""
    rows, maker = [], ""
    for line in lines:
        if line.startswith("C "):  # from here on, classes of devices
            break
        if found := re.match(r"([0-9a-f]{4})  (.+)", line):
            short = re.search(r"\[([^]]*)\]", found[2])
            maker = short[1] if short else re.sub(r"[,. ]+(Inc|Corp(oration)?|Co|Ltd|Limited)\b.*| \(.*", "", found[2])
        elif found := re.match(r"\t([0-9a-f]{4})  (.+)", line):
            name = found[2].strip()
            if maker.split(" ")[0].casefold() not in name.casefold() and len(name) > 8:
                # Steppings and ports of one chip come in dozens: they share what stands before the first number.
                rows.append(Row(name, (maker,), groups=(f"{maker} {re.sub(r'[#0-9].*', '', name)}",)))
    return balanced(rows, least=300)


def emoji(known: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Pair emoji with their names; skin tones and flags would be most of them."""
    for sign, said in known.items():
        name = said["en"].strip(":").replace("_", " ")
        plain = not said.get("variant") and said["status"] == 2
        if plain and "tone" not in name and not re.match("[\U0001f1e6-\U0001f1ff]", sign):
            yield Row(sign, (name, *(alias.strip(":").replace("_", " ") for alias in said.get("alias", ()))))


def _diagnoses() -> list[Row]:
    return diagnoses(ET.parse(file_of("simple-icd-10-cm", "*.xml")).getroot())


def _compounds() -> Iterator[Row]:
    with file_of("chemicals", "*pubchem small.tsv").open(encoding="utf-8") as file:
        yield from compounds(file)


def _devices() -> list[Row]:
    with file_of("pci.ids", "pci.ids").open(encoding="utf-8") as file:
        return devices(file)


def _emoji() -> Iterator[Row]:
    return emoji(json.loads(file_of("emoji", "emoji.json").read_text()))


def tasks() -> list[Task]:
    """List the tasks that contributors have."""
    return [
        Task("diagnosis", "skill", "medicine", ("simple-icd-10-cm",), "choices", _diagnoses,
             ("Diagnosis: {}\nChapter?", "Which chapter of diseases has this: {}?"),
             ("A patient has this: {}. Which kind of disease is it?",)),
        Task("formula", "skill", "chemistry", ("chemicals",), "exact", _compounds, ("Formula of {}:",),
             ("How many atoms of what has {}? Give the formula.",)),
        Task("device-maker", "skill", "hardware", ("pci.ids",), "choices", _devices, ("Device: {}\nMaker?",)),
        Task("emoji", "skill", "signs", ("emoji",), "exact", _emoji, ("What is {}?",)),
    ]  # fmt: skip
