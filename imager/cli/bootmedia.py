"""`imager bootmedia`: the rescue medium, built and written onto a stick."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from imager.cli.arguments import add_common
from imager.cli.confirm import confirm
from imager.cli.progress import ProgressDisplay
from imager.cli.text import format_duration, format_size, say
from imager.errors import EXIT_OK, UsageError
from imager.words.target import current_lines

_BUILD_EXAMPLES = """\
examples:
  imager bootmedia build                            the ISO, into this folder
  imager bootmedia build --with-images /backups     with images on it
  imager bootmedia build --keymap de --ssh-key ~/.ssh/id_ed25519.pub
"""
_WRITE_EXAMPLES = """\
examples:
  imager bootmedia write /dev/sdX                   a stick, after asking
  imager bootmedia write --dry-run serial:4C530001  only say what would happen
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bootmedia",
        help="build the rescue medium, write it onto a stick",
        description="Build the rescue medium, an ISO image that starts as a CD and from a USB stick, "
        "on BIOS, UEFI and with Secure Boot; write it onto a stick.",
        epilog=_BUILD_EXAMPLES + _WRITE_EXAMPLES.removeprefix("examples:\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_build(actions)
    _add_write(actions)


def _add_build(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "build",
        help="build the ISO image",
        description="Build the ISO image from Debian packages and this program.",
        epilog=_BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the ISO, or a folder for it (default: this one)",
    )
    parser.add_argument(
        "--variant",
        choices=("full", "ci"),
        default="full",
        help="ci: a smaller one for tests in virtual machines, without firmware (default: full)",
    )
    parser.add_argument(
        "--with-images",
        type=Path,
        metavar="STORE",
        action="append",
        default=[],
        help="an image, or a folder of them, to go along; may be repeated",
    )
    parser.add_argument(
        "--ssh-key",
        type=Path,
        metavar="FILE",
        help="a public key that may log in as root by SSH; without it no SSH server runs",
    )
    parser.add_argument("--keymap", metavar="LAYOUT", help="keyboard layout, such as de")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="lines imager.KEY=VALUE, the kernel options of the boot entry: an unattended restore",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder for what can be used again (default: ~/.cache/imager/bootmedia)",
    )
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="take exactly the package versions in FILE"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="make the base system anew, with today's packages"
    )
    add_common(parser)
    parser.set_defaults(run=run_build)


def _add_write(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "write",
        help="write the medium onto a stick",
        description="Write the medium onto a USB stick, with a partition for images and logs behind "
        "it. The plan is shown and must be confirmed; what was written is read back and compared.",
        epilog=_WRITE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "iso",
        nargs="?",
        type=Path,
        metavar="ISO",
        help="the ISO (default: the newest in this folder or dist/)",
    )
    parser.add_argument(
        "target", metavar="STICK", help="the disk: a path, serial:NUMBER or wwn:NUMBER"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask (for scripts)")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    add_common(parser)
    parser.set_defaults(run=run_write)


def run_write(arguments: argparse.Namespace) -> int:
    """Carry out `bootmedia write`."""
    from bootmedia.stick import find_iso, plan_stick, write_stick

    plan = plan_stick(arguments.iso or find_iso(), arguments.target)
    asks = not (arguments.yes or arguments.dry_run)
    if asks or not (arguments.json or arguments.quiet):
        say(f"Medium  {plan.iso}")
        say(f"Stick   {plan.target.describe()}")
        say("On it now (all of it will be lost):")
        for line in current_lines(plan.target):
            say(f"  {line}")
        say("On it afterwards:")
        for line in plan.lines():
            say(line)
        for warning in plan.warnings:
            say(f"Note: {warning}")
    if arguments.dry_run:
        return EXIT_OK
    if asks:
        confirm(plan.target.name)
    with ProgressDisplay(arguments.quiet) as progress:
        result = write_stick(plan, progress)
    if arguments.json:
        facts = {
            "target": plan.target.to_json(),
            "written": result.written,
            "data_start": plan.data_start,
            "data_size": plan.data_size,
            "notes": list(result.notes),
            "seconds": round(result.seconds, 3),
        }
        print(json.dumps(facts, indent=2))
    elif not arguments.quiet:
        took = format_duration(result.seconds)
        say(f"{plan.target.path}: {format_size(result.written)} written and read back, in {took}")
        for note in result.notes:
            say(f"note: {note}")
    return EXIT_OK


def run_build(arguments: argparse.Namespace) -> int:
    """Carry out `bootmedia build`."""
    from bootmedia.build import BuildOptions, build, default_name
    from bootmedia.host import default_cache
    from bootmedia.kernel_options import check_options, read_options

    options = read_options(arguments.config) if arguments.config else {}
    if arguments.keymap:
        if "imager.keymap" in options:
            raise UsageError("the keyboard layout is given twice: --keymap, and in --config")
        options["imager.keymap"] = arguments.keymap
        check_options(options)
    quiet = arguments.quiet or arguments.json
    output = arguments.output or Path()
    result = build(
        BuildOptions(
            output=output / default_name(arguments.variant) if output.is_dir() else output,
            cache=arguments.cache or default_cache(),
            variant=arguments.variant,
            images=tuple(arguments.with_images),
            ssh_key=arguments.ssh_key,
            options=options,
            manifest=arguments.manifest,
            refresh=arguments.refresh,
        ),
        (lambda text: None) if quiet else say,
    )
    if arguments.json:
        facts = {
            "iso": str(result.iso),
            "size": result.size,
            "uuid": result.uuid,
            "sha256": result.sha256,
            "packages": result.packages,
            "base_made_now": result.base_made_now,
            "beside": [str(path) for path in result.beside],
            "seconds": round(result.seconds, 3),
        }
        print(json.dumps(facts, indent=2))
    elif not arguments.quiet:
        say(f"{result.iso}: {format_size(result.size)}, in {format_duration(result.seconds)}")
        base = "made now" if result.base_made_now else "from the cache"
        say(f"{result.packages} Debian packages, base system {base}")
        say(f"beside it: {', '.join(path.suffix[1:] for path in result.beside)}")
    return EXIT_OK
