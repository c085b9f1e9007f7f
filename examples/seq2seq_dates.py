"""Dates in many languages to ISO form: an encoder, a decoder, and attention between them.

The encoder, a bidirectional LSTM, reads a date as people write it ("jeudi 4 mars 2021", "2021年3月4日").
The decoder, an LSTM that starts from the encoder's last state, writes 2021-03-04 character by character: in
training with teacher forcing, afterwards greedily or by beam search. The script trains it with and without
attention, and tests it on unseen days, in seen and in held-out formats.

  python examples/seq2seq_dates.py
  python examples/seq2seq_dates.py --predict "4. März 2021"
"""

from __future__ import annotations

import datetime
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import torch
from common import checkpoint, dates, plots, training
from common.cli import Parser, launch, positive_float, positive_int
from common.errors import InputError
from common.implementation import layers
from common.report import Report, say, table
from common.training import Run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

NAME = "seq2seq_dates"
NOISE = 0.02  # of exact match between two seeds
OUTPUT = "0123456789-"  # codes of the answer: these, then START and END
START, END = len(OUTPUT), len(OUTPUT) + 1
LENGTH = 11  # an ISO date and its end
PADDING, UNKNOWN = 0, 1


@dataclass
class Encoded:
    """The encoder's result: states [B, S, 2H], true steps [B, S], the decoder's initial state."""

    states: Tensor
    true: Tensor
    start: tuple[Tensor, Tensor]  # h and c [1, B, H]

    def repeat(self, times: int) -> Encoded:
        """Repeats each text's part ``times`` times, for as many beams."""
        h, c = (part.repeat_interleave(times, 1) for part in self.start)
        states, true = (part.repeat_interleave(times, 0) for part in (self.states, self.true))
        return Encoded(states, true, (h, c))


class DateReader(nn.Module):
    """Encoder and decoder, H hidden units each, with or without attention."""

    def __init__(
        self, layers: ModuleType, vocabulary: int, embedding: int, hidden: int, attention: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.encoder = layers.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.start = nn.Linear(2 * hidden, 2 * hidden)
        self.answer_embedding = nn.Embedding(len(OUTPUT) + 2, embedding)
        self.decoder = layers.LSTM(embedding, hidden, batch_first=True)
        self.query = nn.Linear(hidden, 2 * hidden, bias=False) if attention else None
        self.mix = nn.Linear(3 * hidden if attention else hidden, hidden)
        self.output = nn.Linear(hidden, len(OUTPUT) + 2)

    def encode(self, text: Tensor, lengths: Tensor) -> Encoded:
        """text [B, S], lengths [B] on the CPU."""
        packed = pack_padded_sequence(self.embedding(text), lengths, batch_first=True, enforce_sorted=False)
        out, (h, _) = self.encoder(packed)
        states, _ = pad_packed_sequence(out, batch_first=True)
        start_h, start_c = self.start(torch.cat((h[0], h[1]), 1)).tanh()[None].chunk(2, dim=2)
        return Encoded(states, text != PADDING, (start_h.contiguous(), start_c.contiguous()))

    def decode(
        self, encoded: Encoded, answer: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """answer [B, T], state h and c [1, B, H] -> scores [B, T, V], state, weights [B, T, S]."""
        out, state = self.decoder(self.answer_embedding(answer), state)
        weights = None
        if self.query is not None:
            fit = self.query(out) @ encoded.states.transpose(1, 2)  # [B, T, S]
            weights = fit.masked_fill(~encoded.true[:, None], -torch.inf).softmax(2)
            out = torch.cat((out, weights @ encoded.states), dim=2)
        return self.output(self.mix(out).tanh()), state, weights

    def forward(self, text: Tensor, lengths: Tensor, answer: Tensor) -> Tensor:
        """Teacher forcing: scores [B, T, V] of each next character, given the true ones before."""
        encoded = self.encode(text, lengths)
        return self.decode(encoded, answer, encoded.start)[0]


@torch.inference_mode()
def greedy(model: DateReader, encoded: Encoded) -> Tensor:
    """The most likely character at each step: codes [B, LENGTH]."""
    state = encoded.start
    token = torch.full((len(encoded.states), 1), START, device=encoded.states.device)
    codes = []
    for _ in range(LENGTH):
        scores, state, _ = model.decode(encoded, token, state)
        token = scores.argmax(2)
        codes.append(token)
    return torch.cat(codes, dim=1)


@torch.inference_mode()
def beam_search(model: DateReader, encoded: Encoded, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` most likely answers: codes [B, width, LENGTH], best first, and their log-probabilities.

    Every answer has the same length here, so no score needs to be set right for length.
    """
    size, device = len(encoded.states), encoded.states.device
    wide = encoded.repeat(width)
    state = wide.start
    codes = torch.empty(size, width, 0, dtype=torch.long, device=device)
    token = torch.full((size * width, 1), START, device=device)
    # All beams are equal at first: use only one.
    total = torch.full((size, width), -torch.inf, device=device)
    total[:, 0] = 0.0
    for _ in range(LENGTH):
        scores, state, _ = model.decode(wide, token, state)
        shares = scores[:, 0].log_softmax(1).reshape(size, width, -1)
        joined = (total[..., None] + shares).flatten(1)  # [B, width * V]
        total, best = joined.topk(width, dim=1)
        beam, token = best // shares.shape[2], best % shares.shape[2]
        codes = torch.cat((codes.gather(1, beam[..., None].expand_as(codes)), token[..., None]), 2)
        rows = (torch.arange(size, device=device)[:, None] * width + beam).flatten()
        state = (state[0][:, rows], state[1][:, rows])
        token = token.reshape(-1, 1)
    return codes, total


def iso(codes: Tensor) -> str:
    """Codes [LENGTH] as text, up to the end."""
    text = ""
    for code in codes.tolist():
        if code >= len(OUTPUT):
            break
        text += OUTPUT[code]
    return text


class Reader:
    """Turns pairs (written, ISO) into tensors."""

    def __init__(self, characters: str, device: torch.device) -> None:
        self.characters = characters
        self._codes = {character: code for code, character in enumerate(characters, start=2)}
        self.device = device

    def __len__(self) -> int:
        return len(self.characters) + 2

    def knows(self, character: str) -> bool:
        return character in self._codes

    def texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Codes [B, S], padded, and lengths [B]."""
        codes = [torch.tensor([self._codes.get(c, UNKNOWN) for c in text]) for text in texts]
        lengths = torch.tensor([len(code) for code in codes])
        return pad_sequence(codes, batch_first=True).to(self.device), lengths

    def answers(self, dates: list[str]) -> tuple[Tensor, Tensor]:
        """The decoder's input and target, both [B, LENGTH]."""
        codes = torch.tensor([[OUTPUT.index(c) for c in date] for date in dates])
        start = torch.full((len(dates), 1), START)
        end = torch.full((len(dates), 1), END)
        given, said = torch.cat((start, codes), 1), torch.cat((codes, end), 1)
        return given.to(self.device), said.to(self.device)


def loss_of(run: Run, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
    text, lengths, given, said = batch
    scores = run.forward(text, lengths, given)
    return cross_entropy(scores.flatten(0, 1), said.flatten()), int(lengths.sum()) + said.numel()


def train(args: Namespace, reader: Reader, pairs: list[tuple[str, str]], attention: bool) -> list[Run]:
    world = args.world
    runs = training.start(
        args.impls,
        lambda source: DateReader(source, len(reader), args.embedding, args.hidden, attention),
        world,
        args.seed,
        args.lr,
    )
    numbers = torch.Generator().manual_seed(args.seed)

    def batches():
        for _ in range(args.steps):
            drawn = torch.randint(len(pairs), (args.batch,), generator=numbers)
            texts, answers = zip(*(pairs[i] for i in world.share(drawn).tolist()), strict=True)
            yield (*reader.texts(list(texts)), *reader.answers(list(answers)))

    title = "with attention" if attention else "without attention"
    training.fit(runs, batches(), loss_of, world, steps=args.steps, title=title, schedule=training.cooling)
    return runs


def exact_match(model: DateReader, reader: Reader, pairs: list[tuple[str, str]], width: int = 1) -> float:
    """Share of dates without an error, by beam search if ``width`` is above 1."""
    right = 0
    for at in range(0, len(pairs), 250):
        texts, answers = zip(*pairs[at : at + 250], strict=True)
        with torch.inference_mode():
            encoded = model.encode(*reader.texts(list(texts)))
        codes = greedy(model, encoded)
        if width > 1:
            codes = beam_search(model, encoded, width)[0][:, 0]
        right += sum(iso(code) == answer for code, answer in zip(codes, answers, strict=True))
    return right / len(pairs)


def load(path: Path, args: Namespace) -> tuple[DateReader, Reader]:
    """The trained model with attention from a checkpoint."""
    payload = checkpoint.load(path, NAME, args)
    config, reader = payload["config"], Reader(payload["characters"], args.world.device)
    model = DateReader(layers(args.impls[-1]), len(reader), config["embedding"], config["hidden"], True)
    checkpoint.restore(path, model, checkpoint.weights(payload, args.impls))
    return model.eval().to(args.world.device), reader


def answer(args: Namespace) -> int:
    """Reads a user's date: the most likely answers that are dates."""
    model, reader = load(args.checkpoint, args)
    text = dates.clean(args.predict)
    unknown = sum(not reader.knows(character) for character in text)
    if not any(character.isdigit() for character in text) or 2 * unknown > len(text):
        raise InputError(f"“{text}” is no date in a language this model knows.")
    with torch.inference_mode():
        encoded = model.encode(*reader.texts([text]))
    codes, total = beam_search(model, encoded, args.beams)
    readings = []
    for code, share in zip(codes[0], total[0].exp().tolist(), strict=True):
        try:
            readings.append((datetime.date.fromisoformat(iso(code)).isoformat(), share))
        except ValueError:
            continue
    if not readings:
        raise InputError(f"“{text}” is no date this model can read.")
    say(f"{text}: " + ", ".join(f"{date} {share:.1%}" for date, share in readings))
    return 0


def draw(model: DateReader, reader: Reader, pairs: list[tuple[str, str]], path: Path) -> None:
    """The attention of each character of the answer over the text, for a few dates."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7))
    wanted = ("January", "März", "févr", "ноября")
    for axes, word in zip(panels.flat, wanted, strict=True):
        text, date = next((pair for pair in pairs if word in pair[0]), pairs[0])
        given, _ = reader.answers([date])
        with torch.inference_mode():
            encoded = model.encode(*reader.texts([text]))
            _, _, weights = model.decode(encoded, given, encoded.start)
        axes.imshow(weights[0].cpu(), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(text)), list(text))
        axes.set_yticks(range(LENGTH), [*date, "end"])
    figure.suptitle("Attention: the written date across, the ISO date down")
    plots.save(figure, path)


def main() -> int:
    parser = Parser(NAME, __doc__)
    parser.size("--hidden", 128, 64, "hidden units of encoder (each direction) and decoder")
    parser.size("--embedding", 64, 32, "size of a character's embedding")
    parser.size("--languages", len(dates.LANGUAGES), 6, "how many languages")
    parser.size("--steps", 2000, 250, "batches to train on")
    parser.size("--batch", 64, 64, "dates in a batch")
    parser.size("--lr", 3e-3, 8e-3, "learning rate", positive_float)
    parser.add_argument(
        "--beams", type=positive_int, default=4, help="width of the beam search (default 4)"
    )
    parser.add_argument("--predict", metavar="DATE", help="read DATE; no training")
    args = parser.parse()
    if args.predict is not None:
        return answer(args)
    if args.languages > len(dates.LANGUAGES):
        raise InputError(f"--languages {args.languages} is more than the {len(dates.LANGUAGES)} there are.")

    seen, held_out = dates.split(dates.formats(dates.LANGUAGES[: args.languages]))
    train_pairs = dates.draw(seen, 5_000 if args.quick else 50_000, args.seed, "train")
    tests = {
        "seen": dates.draw(seen, 300 if args.quick else 2_000, args.seed, "test"),
        "held out": dates.draw(held_out, 150 if args.quick else 1_000, args.seed, "test"),
    }
    characters = "".join(sorted({c for text, _ in train_pairs for c in text}))
    reader = Reader(characters, args.world.device)
    say(f"{len(seen)} formats to train on, {len(held_out)} held out, as “{tests['held out'][0][0]}”")

    rows = []
    matches: dict[bool, list[float]] = {}
    for attention in (False, True):
        runs = train(args, reader, train_pairs, attention)
        matches[attention] = []
        for each in runs:
            shares = [
                exact_match(each.model, reader, pairs, width)
                for pairs in tests.values()
                for width in (1, args.beams)
            ]
            matches[attention].append(shares[0])
            rows.append((f"{'with' if attention else 'without'} attention, {each.impl}", *shares))
    header = ["exact match"] + [f"{part}, {how}" for part in tests for how in ("greedy", "beams")]
    say("\n" + table(header, rows))

    checkpoint.save(
        args.checkpoint,
        NAME,
        {"hidden": args.hidden, "embedding": args.embedding},
        characters=characters,
        runs={each.impl: each.saved() for each in runs},
    )
    if args.world.rank > 0:
        return 0
    model, _ = load(args.checkpoint, args)
    draw(model, reader, tests["seen"], args.out / f"{NAME}.png")
    plots.losses(runs, args.out / f"{NAME}_loss.png", "Dates, with attention")

    report = Report(NAME, args)
    report.figures["exact match without attention"] = matches[False][-1]
    report.figures["exact match in held-out formats"] = rows[-1][3]
    report.expect(
        "exact match of the reloaded checkpoint, seen formats",
        exact_match(model, reader, tests["seen"]),
        least=0.9 if args.quick else 0.98,
    )
    report.same_start(runs)
    report.same_in_both("exact match", matches[True], NOISE)
    return report.finish(runs)


if __name__ == "__main__":
    launch(main)
