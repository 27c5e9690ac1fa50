"""The boot menu: GRUB's configuration on the ISO, and the one that finds it."""

from __future__ import annotations

from collections.abc import Mapping

from bootmedia.kernel_options import JOB_KEYS

_CONSOLES = "console=tty0 console=ttyS0,115200"
_QUIET = "quiet loglevel=3 systemd.show_status=false vt.global_cursor_default=1"
_LIVE = "boot=imager noresume systemd.gpt_auto=0"
_SECONDS = 3
_SECONDS_BEFORE_JOB = 10
"""Enough to stop it by a key, short enough for a machine that nobody watches."""

_HEAD = """\
set default=0
set timeout={seconds}
if serial --unit=0 --speed=115200; then
  terminal_input console serial
  terminal_output console serial
fi
"""
_ENTRY = """\
menuentry "{title}" {{
  linux /live/vmlinuz {options}
  initrd /live/initrd.img
}}
"""
_TAIL = """\
menuentry "Do not rescue: start from the next device" {
  exit
}
if [ "$grub_platform" = "efi" ]; then
  menuentry "Firmware setup" {
    fwsetup
  }
fi
"""


def menu(uuid: str, options: Mapping[str, str]) -> str:
    """GRUB's configuration for the medium with the UUID `uuid`.

    `options` are checked kernel options (`imager.*`). With a job among them the first entry says
    what will happen, and starts by itself.
    """
    by_hand = {key: value for key, value in options.items() if key not in JOB_KEYS}
    parts = []
    if "imager.restore" in options:
        parts.append(_HEAD.format(seconds=_SECONDS_BEFORE_JOB))
        parts.append(_entry(_job_title(options), uuid, options))
    else:
        parts.append(_HEAD.format(seconds=_SECONDS))
    parts.append(_entry("imager: restore, capture or check", uuid, by_hand))
    parts.append(_entry("imager, if the screen stays dark", uuid, by_hand, "nomodeset"))
    return "".join([*parts, _TAIL])


def finder(uuid: str) -> str:
    """The configuration in the EFI partition: find the ISO, and go on there."""
    return (
        f"search --no-floppy --fs-uuid --set=root {uuid}\n"
        "set prefix=($root)/boot/grub\n"
        "source $prefix/grub.cfg\n"
    )


def _job_title(options: Mapping[str, str]) -> str:
    image = options.get("imager.image", "the newest image")
    target = options.get("imager.target", "the only disk")
    return f"WITHOUT ASKING: restore {image} onto {target}"


def _entry(title: str, uuid: str, options: Mapping[str, str], more: str = "") -> str:
    words = [_LIVE, f"live.medium={uuid}", _QUIET, more, _CONSOLES]
    words += [f"{key}={value}" for key, value in options.items()]
    return _ENTRY.format(title=title, options=" ".join(word for word in words if word))
