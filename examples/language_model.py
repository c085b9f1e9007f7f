"""What comes next? A language model: embedding, LSTM or GRU, linear layer.

Trains on the source of the standard library (or --file), as characters or words, by truncated
backpropagation: the text is cut into streams, and each step trains on the next window of every stream,
starting from the detached hidden state of the window before. Compares perplexity with that of n-grams.

  python examples/language_model.py                               characters
  python examples/language_model.py --text words --cell GRU       words
  python examples/language_model.py --text sentences              three sentences, the smallest one
  python examples/language_model.py --predict "def " --temperature 0.5
  torchrun --nproc-per-node 2 --max-restarts 3 examples/language_model.py
                       two processes; after a failure they restart from the last checkpoint
"""

from __future__ import annotations

import math
import os
import signal
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from common import checkpoint, corpus, distributed, plots, training
from common.cli import Parser, launch, positive_float, positive_int
from common.corpus import NGrams, Vocabulary
from common.errors import InputError
from common.implementation import layers
from common.report import Report, say, table
from common.training import Run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

NAME = "language_model"
NOISE = 0.03  # relative difference in perplexity between two seeds
SENTENCES = (
    "我 喜欢 玩具",
    "我 爱 爸爸",
    "我 讨厌 挨打",
)  # I like toys, I love Dad, I hate beatings
CONFIG = ["text", "cell", "layers", "embedding", "hidden", "dropout"]
CONFIG += ["batch", "window", "characters", "most_words"]
ORDERS = {"chars": 6, "words": 4}  # of the n-grams


class LanguageModel(nn.Module):
    """Embedding [E], recurrent layers [H], linear to the vocabulary [V]."""

    def __init__(
        self,
        layers: ModuleType,
        cell: str,
        vocabulary: int,
        embedding: int,
        hidden: int,
        depth: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.dropout = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0
        self.rnn = getattr(layers, cell)(embedding, hidden, depth, dropout=between)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor, state=None) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """tokens [T, B], state as torch.nn's -> scores of the next token [T, B, V], new state."""
        out, state = self.rnn(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(out)), state


def detached(state):
    """The state without its history: gradients stop here."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def loss_of(run: Run, batch: tuple[Tensor, Tensor, bool]) -> tuple[Tensor, int]:
    """The loss on a window: its tokens [T, B], the tokens that follow [T, B], is it the first?"""
    tokens, following, first = batch
    scores, state = run.forward(tokens, None if first else run.state)
    run.state = detached(state)
    return cross_entropy(scores.flatten(0, 1), following.flatten()), tokens.numel()


def windows(data: Tensor, length: int, start: int, steps: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Windows of streams [T, B], from ``start`` to ``steps``, again and again through the text."""
    per_pass = (len(data) - 1) // length
    for step in range(start, steps):
        at = step % per_pass * length
        fresh = at == 0 or step == start  # nothing carried at the text's start, nor after a resume
        yield data[at : at + length], data[at + 1 : at + length + 1], fresh


@torch.inference_mode()
def perplexity(model: LanguageModel, codes: Tensor, count: int = 8) -> float:
    """Perplexity on a held-out text [N], in a few streams, the state carried through."""
    data = corpus.streams(codes, min(count, max(1, len(codes) // 2)))
    total, state = 0.0, None
    for at in range(0, len(data) - 1, 256):
        following = data[at + 1 : at + 257]
        scores, state = model(data[at : at + len(following)], state)
        total += cross_entropy(scores.flatten(0, 1), following.flatten(), reduction="sum").item()
    return math.exp(total / (data.numel() - data.shape[1]))


@torch.inference_mode()
def sample(model: LanguageModel, start: Tensor, length: int, temperature: float, seed: int) -> list[int]:
    """Codes drawn one by one after ``start`` [T]; a low temperature keeps to the likeliest."""
    numbers = torch.Generator().manual_seed(seed)
    scores, state = model(start[:, None])
    drawn: list[int] = []
    for _ in range(length):
        scaled = scores[-1, 0].float().cpu() / temperature
        scaled[0] = -torch.inf  # never the unknown token
        drawn.append(int(torch.multinomial(scaled.softmax(0), 1, generator=numbers)))
        scores, state = model(torch.tensor([[drawn[-1]]], device=start.device), state)
    return drawn


def build(source: ModuleType, config: dict, vocabulary: int) -> LanguageModel:
    return LanguageModel(
        source,
        config["cell"],
        vocabulary,
        config["embedding"],
        config["hidden"],
        config["layers"],
        config["dropout"],
    )


def config_of(args: Namespace) -> dict:
    """What a checkpoint is bound to: sizes of the model, and where in the text a step is."""
    return {name: getattr(args, name) for name in CONFIG}


def load(path: Path, args: Namespace) -> tuple[LanguageModel, Vocabulary, dict]:
    """The trained model from a checkpoint, its vocabulary and its sizes."""
    payload = checkpoint.load(path, NAME, args)
    vocabulary = Vocabulary(payload["vocabulary"])
    model = build(layers(args.impls[-1]), payload["config"], len(vocabulary))
    checkpoint.restore(path, model, checkpoint.weights(payload, args.impls))
    return model.eval().to(args.world.device), vocabulary, payload["config"]


def answer(args: Namespace) -> int:
    """Continue a user's text."""
    model, vocabulary, config = load(args.checkpoint, args)
    if not args.predict.strip():
        raise InputError("the text to continue is empty; give a few words.")
    if config["text"] == "sentences":
        words = args.predict.split()
        for word in words:
            if word not in vocabulary:
                raise InputError(f"“{word}” is in none of the three sentences.")
        scores, _ = model(vocabulary.codes(words).to(args.world.device)[:, None])
        say(" ".join((*words, vocabulary.words[int(scores[-1, 0].argmax())])))
        return 0
    tokens = corpus.tokens(args.predict, config["text"])
    known = [token for token in tokens if token in vocabulary]
    if 2 * len(known) < len(tokens):
        raise InputError(f"most of “{args.predict}” was never seen in training; give other text.")
    start = vocabulary.codes(tokens).to(args.world.device)
    drawn = sample(model, start, args.length, args.temperature, args.seed)
    say(args.predict + "".join(vocabulary.words[code] for code in drawn))
    return 0


def three_sentences(args: Namespace) -> int:
    """The smallest language model predicts the third word from two."""
    words = [sentence.split() for sentence in SENTENCES]
    vocabulary = Vocabulary([corpus.UNKNOWN, *sorted({word for line in words for word in line})])
    codes = torch.stack([vocabulary.codes(line) for line in words], 1).to(args.world.device)
    config = config_of(args) | {"embedding": 8, "hidden": 16, "layers": 1, "dropout": 0.0}
    runs = training.start(
        args.impls,
        lambda source: build(source, config, len(vocabulary)),
        args.world,
        args.seed,
        0.02,
    )

    def loss_of_third(run: Run, _: int) -> tuple[Tensor, int]:
        scores, _ = run.forward(codes[:2])
        return cross_entropy(scores[-1], codes[2]), codes[:2].numel()

    training.fit(runs, range(200), loss_of_third, args.world, steps=200, title="three sentences")
    checkpoint.save(
        args.checkpoint,
        NAME,
        config,
        vocabulary=vocabulary.words,
        runs={run.impl: run.saved() for run in runs},
    )
    report = Report(f"{NAME}_sentences", args)
    for run in runs:
        scores, _ = run.model(codes[:2])
        said = [vocabulary.words[code] for code in scores[-1].argmax(1).tolist()]
        for line, third in zip(words, said, strict=True):
            say(f"{run.impl}: {line[0]} {line[1]} → {third} (truth: {line[2]})")
        right = sum(line[2] == third for line, third in zip(words, said, strict=True))
        report.expect(f"sentences right, {run.impl}", right, least=3)
    report.same_start(runs)
    return report.finish(runs)


def resume(args: Namespace, payload: dict, runs: list[Run]) -> None:
    """Weights and optimizers from a checkpoint of either implementation."""
    for run in runs:
        kept = payload["runs"].get(run.impl, next(iter(payload["runs"].values())))
        checkpoint.restore(args.checkpoint, run.model, kept["model"])
        run.optimizer.load_state_dict(kept["optimizer"])


def checkpoint_to_resume(args: Namespace) -> dict | None:
    """The checkpoint to continue from, on request or after a restart by torchrun."""
    restarted = distributed.restarts() > 0 and args.checkpoint.exists()
    if not args.resume and not restarted:
        return None
    payload = checkpoint.load(args.checkpoint, NAME, args)
    if payload["config"]["text"] != args.text or "step" not in payload:
        raise InputError(
            f"{args.checkpoint} holds a model of {payload['config']['text']}, not of {args.text}."
        )
    for name, value in payload["config"].items():
        setattr(args, name, value)
    return payload


def train(args: Namespace, vocabulary: Vocabulary, data: Tensor, payload: dict | None) -> list[Run]:
    """Trains every implementation on streams [T, B], with checkpoints in between."""
    config, world = config_of(args), args.world
    runs = training.start(
        args.impls, lambda source: build(source, config, len(vocabulary)), world, args.seed, args.lr
    )
    done = 0
    if payload:
        resume(args, payload, runs)
        done = payload["step"]
        say(f"resumed at step {done} of {args.steps}, on {world.size} process(es)")

    def after_step(step: int) -> None:
        if step % args.save_every == 0 or step == args.steps:
            checkpoint.save(
                args.checkpoint,
                NAME,
                config,
                vocabulary=vocabulary.words,
                step=step,
                runs={run.impl: run.saved() for run in runs},
            )
        if step == args.crash_at and distributed.restarts() == 0 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    mine = data[:, world.share(torch.arange(data.shape[1]))].to(world.device)
    training.fit(
        runs,
        windows(mine, args.window, done, args.steps),
        loss_of,
        world,
        steps=args.steps,
        title=f"{args.cell} on {args.text}",
        schedule=training.cooling,
        after_step=after_step,
        first_step=done,
    )
    return runs


def main() -> int:
    parser = Parser(NAME, __doc__, checkpoint=f"{NAME}_{{text}}")
    parser.add_argument(
        "--text",
        choices=("chars", "words", "sentences"),
        default="chars",
        help="unit of the text, or the three sentences (default chars)",
    )
    parser.add_argument("--file", type=Path, help="your own UTF-8 text to train on")
    parser.add_argument("--cell", choices=("LSTM", "GRU"), default="LSTM", help="(default LSTM)")
    parser.size("--layers", 2, 1, "recurrent layers")
    parser.size("--hidden", 256, 128, "hidden units")
    parser.size("--embedding", 128, 64, "size of a token's embedding")
    parser.size("--dropout", 0.1, 0.0, "dropout between layers", float)
    parser.size("--batch", 32, 16, "streams")
    parser.size("--window", 64, 64, "tokens in a window: how far back gradients go")
    parser.size("--steps", 1000, 700, "windows to train on")
    parser.size("--characters", 3_000_000, 300_000, "characters of source to train on")
    parser.size("--most-words", 5000, 1000, "size of the vocabulary of words")
    parser.size("--lr", 4e-3, 8e-3, "learning rate", positive_float)
    parser.size("--save-every", 250, 200, "steps between checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--crash-at", type=int, help="the last process kills itself after this step")
    parser.add_argument("--predict", metavar="TEXT", help="continue TEXT; no training")
    parser.add_argument("--length", type=positive_int, default=200, help="tokens to draw")
    parser.add_argument("--temperature", type=positive_float, default=0.7, help="(default 0.7)")
    args = parser.parse()
    if not 1 <= args.layers <= 4:
        raise InputError(f"--layers {args.layers} is not between 1 and 4.")
    if not 0 <= args.dropout < 1:
        raise InputError(f"--dropout {args.dropout} is not between 0 and 1.")
    if args.batch < args.world.size:
        raise InputError(f"--batch {args.batch} is too few streams for {args.world.size} processes.")
    if args.predict is not None:
        return answer(args)
    if args.text == "sentences":
        if args.resume:
            raise InputError("the three sentences take seconds to train: leave --resume out.")
        return three_sentences(args)
    if args.text == "words" and args.most_words < 2:
        raise InputError(f"--most-words {args.most_words} leaves no word to predict; give 2 or more.")

    payload = checkpoint_to_resume(args)
    if args.file:
        texts = corpus.own_file(args.file)
    else:
        texts = corpus.standard_library(args.characters, min(100_000, args.characters // 6), args.seed)
    tokens, test_tokens = (corpus.tokens(text, args.text) for text in texts)
    most = 250 if args.text == "chars" else args.most_words
    vocabulary = Vocabulary(payload["vocabulary"]) if payload else Vocabulary.of(tokens, most)
    codes, test = vocabulary.codes(tokens), vocabulary.codes(test_tokens)
    if len(codes) < args.batch * (args.window + 1) or len(test) < 2:
        raise InputError(
            f"{args.file or 'the source'} has {len(codes)} tokens to train on; "
            f"{args.batch} streams of {args.window} need more: give smaller --batch and --window."
        )
    data = corpus.streams(codes, args.batch)
    say(f"{len(codes)} tokens to train on, {len(test)} to test; {len(vocabulary)} different ones")
    runs = train(args, vocabulary, data, payload)
    if args.world.rank > 0:
        return 0

    model, _, _ = load(args.checkpoint, args)
    results = [perplexity(run.model, test.to(args.world.device)) for run in runs]
    reloaded = perplexity(model, test.to(args.world.device))
    baseline = NGrams(codes.tolist(), len(vocabulary), ORDERS[args.text]).perplexities(test.tolist())
    rows = [(f"{order}-gram", value) for order, value in enumerate(baseline, start=1)]
    rows += [(f"{args.cell}, {run.impl}", value) for run, value in zip(runs, results, strict=True)]
    say("\n" + table(("perplexity on held-out text", ""), rows))
    prompt = "def " if args.text == "chars" else "return "
    start = vocabulary.codes(corpus.tokens(prompt, args.text)).to(args.world.device)
    for temperature in (0.3, 0.7, 1.0):
        drawn = sample(model, start, 200 if args.text == "chars" else 60, temperature, args.seed)
        say(f"\nSample at temperature {temperature}")
        say(prompt + "".join(vocabulary.words[code] for code in drawn))
    if runs[0].losses:
        plots.losses(runs, args.out / f"{NAME}_{args.text}.png", f"{args.cell} on {args.text}")

    report = Report(f"{NAME}_{args.text}", args)
    report.expect("perplexity, against the best n-gram's", reloaded, most=min(baseline))
    if len(runs[0].losses) > 20:
        fall = sum(runs[-1].losses[-10:]) / sum(runs[-1].losses[:10])
        report.expect("last losses as a share of the first", fall, most=0.8)
    if payload is None:
        report.same_start(runs)
    logs = [math.log(value) for value in results]
    report.same_in_both("log-perplexity", logs, NOISE)
    return report.finish(runs)


if __name__ == "__main__":
    launch(main)
