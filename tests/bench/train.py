"""How fast `greylag-client train` is beside a plain script of transformers' Trainer and PEFT.

    python -m tests.bench.train

Both train the same expert on the same rows with the same steps, batches, looks at held-out rows and checkpoints; in
turn, in one process, in CPU time. The gates come on top: 100 steps beside the expert's 1000. The last line of stdout
is one JSON object.
"""

import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from client.progress import Progress
from client.training.pipeline import train
from client.training.plan import TrainingPlan, TrainingRequest, plan_modules
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.settings import dump_settings
from protocol.signing import Identity
from protocol.spec import Recipe
from tests import factories

ROWS, ROUNDS, D_MODEL = 600, 3, 128
RECIPE = Recipe(
    rank=8,
    alpha=8.0,
    learning_rate=1e-3,
    expert_steps=1000,
    gate_steps=100,
    batch_size=16,
    eval_every=250,
    held_out=0.1,
)
WARM_UP = RECIPE.model_copy(update={"expert_steps": 20, "gate_steps": 2, "eval_every": 10})


def main() -> None:
    """Alternate both, and sum up."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # libraries' notes to programmers
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = factories.make_t5(folder / "base", d_model=D_MODEL)
        rows = write_rows(folder / "rows.jsonl")
        pool = factories.make_pool(base, Identity.generate(), RECIPE)
        workspace = ClientWorkspace(folder)
        settings = {"coordinator": "127.0.0.1:1", "pool_key": pool.spec.coordinator, "base": str(base), "name": "it"}
        workspace.settings_file.write_bytes(dump_settings(ClientSettings.model_validate(settings)))
        workspace.pool_file.write_bytes(pool.envelope)
        (folder / "split.key").write_bytes(bytes(32))
        ratios, shares = [], []
        for turn in range(ROUNDS + 1):
            recipe = RECIPE if turn else WARM_UP
            modules = plan_modules(pool.spec, recipe)
            asked = TrainingRequest((rows,), seed=turn, device="cpu")
            plan = TrainingPlan(asked, workspace, "it", recipe, modules, None)
            expert = gates = 0.0
            if turn % 2:  # who comes second finds the caches in another state
                expert, gates = ours(plan, folder / f"ours-{turn}")
            bare = script(base, rows, folder / f"bare-{turn}", turn, recipe)
            if not turn % 2:
                expert, gates = ours(plan, folder / f"ours-{turn}")
            sys.stderr.write(f"round {turn}: script {bare:.2f} s, expert {expert:.2f} s, gates {gates:.2f} s\n")
            if turn:
                ratios.append(bare / expert)
                shares.append(gates / (expert + gates))
    document = {
        "schema": 1,
        "throughput_ratio": round(statistics.median(ratios), 3),
        "gate_share": round(statistics.median(shares), 3),
    }
    sys.stdout.write(json.dumps(document) + "\n")


def ours(plan: TrainingPlan, folder: Path) -> tuple[float, float]:
    """Run ours.

    Returns:
        Seconds of CPU for all but the gates, and for the gates.
    """
    start, seen = time.process_time(), list[float]()

    def report(event: Progress) -> None:
        if event.phase == "gates":
            seen.append(time.process_time())

    train(plan, folder, report)
    end = time.process_time()
    # What comes before the end of the first step is not seen; the other steps stand for it.
    gates = (end - seen[0]) * len(seen) / (len(seen) - 1)
    return end - start - gates, gates


def script(base: Path, rows: Path, folder: Path, seed: int, recipe: Recipe) -> float:
    """Train an expert as the libraries' manuals show it.

    Returns:
        Seconds of CPU.
    """
    start = time.process_time()
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = T5ForConditionalGeneration.from_pretrained(base)
    model = get_peft_model(
        model, LoraConfig(r=recipe.rank, lora_alpha=8, target_modules="all-linear", task_type="SEQ_2_SEQ_LM")
    )
    data = datasets.Dataset.from_json(str(rows), cache_dir=str(folder / "cache"))
    data = data.map(
        lambda row: tokenizer(row["input"], text_target=row["target"]), batched=True, remove_columns=data.column_names
    )
    parts = data.train_test_split(recipe.held_out, seed=0)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=recipe.expert_steps,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=round(recipe.warmup_ratio * recipe.expert_steps),
            eval_strategy="steps",
            eval_steps=recipe.eval_every,
            save_steps=recipe.eval_every,
            save_total_limit=2,
            load_best_model_at_end=True,
            logging_steps=10,
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
            seed=seed,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.save_pretrained(folder / "adapter")
    return time.process_time() - start


def write_rows(path: Path) -> Path:
    """Write rows of some length."""
    draw = random.Random(7)
    with path.open("w") as file:
        for _ in range(ROWS):
            letters = [draw.choice("abcdefghij") for _ in range(draw.randint(8, 24))]
            file.write(json.dumps({"input": f"reverse {' '.join(letters)}", "target": " ".join(letters[::-1])}) + "\n")
    return path


if __name__ == "__main__":
    main()
