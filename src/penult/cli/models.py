"""Commands that run a model: classify, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from penult.cli.options import (
    NO_OPTIONS,
    BoxOption,
    Channel,
    Device,
    End,
    Engine,
    Json,
    Model,
    ModelOptions,
    Paths,
    Pooling,
    PoolOver,
    Precision,
    Start,
    Tap,
    modality_for,
    of_part,
    query_part,
    source_of,
    with_columns,
    with_limits,
    with_model_options,
)
from penult.cli.output import (
    SOME_FAILED,
    cell,
    place_words,
    print_failure,
    print_json,
    printable,
    printable_path,
    proof_line,
    stdout,
    working,
)
from penult.errors import UsageError, listed


@with_columns
@with_limits
@with_model_options
def classify(
    model: Model,
    paths: Paths,
    top: Annotated[int, typer.Option(min=1, help="Number of labels to show.")] = 3,
    channel: Channel = None,
    start: Start = None,
    end: End = None,
    box: BoxOption = None,
    device: Device = "auto",
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Classify items with the original classifier: label, probability, class number, logit."""
    from penult.embedding.embedder import label_runner
    from penult.embedding.runner import Outcome, prediction_of
    from penult.models.specs import open_recorded

    modality = modality_for(model, model_options)
    part = query_part(modality, start, end, channel, box)
    source = of_part(source_of(paths, channel, modality), part.region)
    with working(f"loading {model}"):
        classifier = open_recorded(model, **model_options)
    runner = label_runner(classifier, source, device)
    predictions, failures = [], []
    for outcome in runner.stream(source):
        if not isinstance(outcome, Outcome):
            failures.append(outcome)
            print_failure(outcome.id, outcome.message)
            continue
        prediction = prediction_of(classifier, outcome)
        if json:
            predictions.append(prediction.to_dict())
        else:
            content = outcome.item.content
            _show_prediction(prediction, top, content if isinstance(content, str) else None)
    if json:
        print_json(
            {
                "model": classifier.spec,
                "kind": classifier.kind,
                "labels": classifier.labels,
                "predictions": predictions,
                "failures": [failure.to_dict() for failure in failures],
            }
        )
    if failures:
        raise typer.Exit(SOME_FAILED)


@with_model_options
def convert(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder or file to write.")],
    tap: Tap = None,
    pooling: Pooling = None,
    pool_over: PoolOver = None,
    verify: Annotated[
        list[str] | None,
        typer.Option(
            help="File to prove the head on, and to compare --format with torch on; give it "
            "twice for two files."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="embedder: Penult's own folder. For programs without Penult: onnx, openvino, pt2 "
            "(torch.export), sentence-transformers, transformers."
        ),
    ] = "embedder",
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Class file of penult teach, whose probabilities onnx, openvino and pt2 give too."
        ),
    ] = None,
    engine: Engine = "torch",
    precision: Precision = None,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Save a classifier as an embedder: a folder that every command accepts as MODEL.

    The proof of the head and the measured batching policy are saved with it. With --format it is
    written for programs that know nothing of Penult, and compared with torch before it is kept.
    """
    from penult.data.sources import from_objects
    from penult.embedding.embedder import keep_engine, open_embedder, require_proof
    from penult.embedding.source_sample import SourceSample

    if format == "embedder":
        if classes is not None:
            raise UsageError("--classes goes with --format onnx, openvino or pt2")
    else:
        _check_conversion(out, format, engine, precision)
    with working(f"loading {model}"):
        embedder = open_embedder(
            model,
            tap,
            pooling,
            pool_over=pool_over,
            engine=engine,
            precision=precision,
            **model_options,
        )
    sample = SourceSample(source_of(verify, None, embedder.classifier.modality)) if verify else None
    with working("proving the head"):
        require_proof(embedder, sample)
    if format != "embedder":
        _write_conversion(embedder, out, format, sample.source if sample else None, classes, json)
        return
    with working("measuring the batching policy"):
        _ = embedder.runner.policy
    if engine != "auto":  # the recorded graph and its measured precision are saved too
        with working(f"measuring {engine}"):
            embedder.settle(sample or SourceSample(from_objects((), embedder.classifier.modality)))
            keep_engine(embedder)
    _save(embedder, out, json)


def _save(embedder: Any, out: Path, json: bool) -> None:
    from penult.embedding.embedder import describe_embedder
    from penult.models.code_bundle import CodeBundle, needs

    saved = embedder.save(out)
    bundle = CodeBundle.read(saved)
    if json:
        code = {} if bundle is None else {"code": dict(bundle.hashes), "needs": needs(bundle)}
        print_json({"folder": str(saved), **describe_embedder(embedder), **code})
        return
    stdout.print(
        f"saved [bold]{printable(str(saved))}[/]: tap [cyan]{escape(embedder.tap.name)}[/], "
        f"pooling [cyan]{embedder.pooling}[/], {embedder.dim} numbers per "
        f"{'position' if embedder.pooling == 'none' else 'item'}, "
        f"fingerprint {embedder.fingerprint_id}",
        soft_wrap=True,
    )
    stdout.print(proof_line(embedder), soft_wrap=True)
    stdout.print(f"[dim]batches: {embedder.runner.policy.words}[/]", soft_wrap=True)
    if bundle is not None:
        installed = f"; of installed packages it needs {listed(needs(bundle))}"
        words = f"carries your code: {listed(bundle.hashes)}{installed if needs(bundle) else ''}"
        stdout.print(f"[dim]{printable(words)}[/]", soft_wrap=True)
    if embedder.runner.choice:
        stdout.print(f"[dim]{printable(embedder.runner.choice.words)}[/]", soft_wrap=True)


def _check_conversion(out: Path, format: str, engine: str, precision: str | None) -> None:
    """Refuse what cannot be written before a model is opened."""
    from penult.conversion.formats import check_target, find_format

    check_target(out, find_format(format))
    if engine != "torch" or precision not in (None, "exact"):
        raise UsageError(
            f"--format {format} holds the model in fp32; --engine and --precision go with the "
            "program that runs it"
        )


def _write_conversion(
    embedder: Any, out: Path, format: str, source: Any, classes: Path | None, json: bool
) -> None:
    from penult.conversion.formats import convert as convert_to

    with working(f"writing {format}, and comparing it with torch"):
        done = convert_to(embedder, out, format, source, classes)
    if json:
        print_json(done.to_dict())
        return
    stdout.print(
        f"wrote [bold]{printable(str(done.path))}[/]: tap [cyan]{escape(embedder.tap.name)}[/], "
        f"pooling [cyan]{embedder.pooling}[/], {done.facts['dim']} numbers per item, "
        f"fingerprint {embedder.fingerprint_id}",
        soft_wrap=True,
    )
    stdout.print(proof_line(embedder), soft_wrap=True)
    stdout.print(printable(done.parity.words), soft_wrap=True)
    for name in ("inputs", "outputs", "padding", "hidden", "modules"):
        if name in done.facts:
            value = done.facts[name]
            words = value if isinstance(value, str) else ", ".join(value)
            stdout.print(f"[dim]{name}: {printable(words)}[/]", soft_wrap=True)
    if done.example:
        stdout.print(f"\n{escape(done.example)}", soft_wrap=True, end="")


def _show_prediction(prediction: Any, top: int, text: str | None) -> None:
    """text: of an item that is one."""
    part = place_words(prediction.region)
    where = f" [dim]{part}[/]" if part else ""
    where += "" if text is None else f" {cell(text)}"
    stdout.print(f"[bold]{printable_path(prediction.id)}[/]{where}", soft_wrap=True)
    for place, best in enumerate(prediction.top(top)):
        style = "bold green" if place == 0 else "dim"
        stdout.print(
            f"  [{style}]{best.score:7.4f}  {printable(best.label)}[/]"
            f"  [dim]class {best.index}, logit {best.logit:.4f}[/]",
            soft_wrap=True,
        )
