"""Orders on the kernel line: what is understood, and that whatever is misspelt does nothing."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imager.errors import UsageError
from imager.rescue.kernel_line import (
    Console,
    ImageChoice,
    KernelLine,
    Network,
    TargetChoice,
    parse_kernel_line,
)

OTHERS = "BOOT_IMAGE=/live/vmlinuz boot=live noswap console=tty0 console=ttyS0,115200 quiet "
AUTO = "imager.restore=auto imager.image=BACKUP:/x.img imager.target=only-disk "


def test_no_orders() -> None:
    assert parse_kernel_line(OTHERS) == parse_kernel_line("") == KernelLine()


def test_a_whole_job() -> None:
    line = parse_kernel_line(
        OTHERS + 'imager.restore=auto imager.image="MY DISK:/some folder/x.img" '
        "imager.target=serial:S6P1NX0R imager.after=reboot imager.job=room-5 imager.keymap=de "
        "imager.console=ttyS1,115200"
    )
    assert line.job is not None
    assert line.job.image == ImageChoice("MY DISK", PurePosixPath("/some folder/x.img"))
    assert line.job.target == TargetChoice("serial", "S6P1NX0R")
    assert (line.job.after, line.job.id) == ("reboot", "room-5")
    assert len(line.job.words) == 7
    assert (line.keymap, line.console) == ("de", Console("ttyS1", 115200))


def test_defaults() -> None:
    job = parse_kernel_line(AUTO).job
    assert job is not None and (job.after, job.id) == ("poweroff", None)


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("newest", ImageChoice(None, None)),
        ("BACKUP:newest", ImageChoice("BACKUP", None)),
        ("BACKUP:/newest", ImageChoice("BACKUP", PurePosixPath("/newest"))),
        ("A:/b:c.img", ImageChoice("A", PurePosixPath("/b:c.img"))),
    ],
)
def test_images(value: str, choice: ImageChoice) -> None:
    job = parse_kernel_line(f"imager.restore=auto imager.target=wwn:1 imager.image={value}").job
    assert job is not None and job.image == choice


def test_network_and_share() -> None:
    line = parse_kernel_line("imager.net=eth0:10.0.0.5/24:10.0.0.1:10.0.0.2 imager.keymap=us")
    assert line.network is not None and line.network.interface == "eth0"
    assert str(line.network.address) == "10.0.0.5/24"
    assert (str(line.network.gateway), str(line.network.dns)) == ("10.0.0.1", "10.0.0.2")
    line = parse_kernel_line(
        "imager.restore=auto imager.target=only-disk imager.image=share:newest "
        "imager.net=dhcp imager.share=smb://nas/backup"
    )
    assert line.network == Network()
    assert line.share is not None and line.share.address == "smb://nas/backup"
    assert parse_kernel_line("imager.net=eth0:10.0.0.5/24").network is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imager.imgae=x", "imager.imgae on the kernel line is not known: is imager.image meant?"),
        ("imager.x=y", "known are imager.restore, imager.image"),
        ("imager=auto", "imager on the kernel line is not known"),
        ("Imager.restore=auto", "is not known"),
        ("imager_restore=auto", "is not known"),
        ("imager.restore", "has no value"),
        ("imager.restore=", "has no value"),
        ("imager.restore=yes", "imager.restore=yes is not known: write auto"),
        ("imager.restore=auto imager.restore=auto", "stands twice"),
        (AUTO + "imager.target=only-disk", "imager.target stands twice"),
        ("imager.restore=auto imager.target=only-disk", "needs imager.image"),
        ("imager.restore=auto imager.image=newest", "needs imager.target"),
        ("imager.image=newest", "imager.image is given without imager.restore=auto"),
        ("imager.after=shell", "imager.after is given without imager.restore=auto"),
        (AUTO + "imager.after=halt", "write reboot, poweroff, shell"),
        (AUTO + "imager.job=../x", "is no name"),
        (AUTO + "imager.job=.hidden", "is no name"),
        (AUTO + f"imager.job={'x' * 65}", "is no name"),
        (AUTO + "imager.share=smb://nas/x", "without imager.net"),
        (AUTO + "imager.net=dhcp imager.share=smb://nas/x", "do not fit together"),
        ("imager.net=dhcp imager.share=smb://me@nas/x", "does not belong on the kernel line"),
        ("imager.net=dhcp imager.share=ssh://nas/x", "only smb:// and nfs://"),
        ("imager.net=dhcp imager.share=nas", "no address of a share"),
        ("imager.net=eth0", "imager.net=eth0 is not understood"),
        ("imager.net=eth0:10.0.0.5:10.0.0.1:", "is not understood"),
        ("imager.net=eth0:10.0.0.5/24:a:b:c", "is not understood"),
        ("imager.net=eth0:10.0.0.5/33", "is not understood"),
        ("imager.console=/dev/sda", "is no terminal"),
        ("imager.console=ttyS0;reboot", "is no terminal"),
        ("imager.keymap=../de", "is no keyboard layout"),
        ('imager.keymap="de', "without its second one"),
        ("imager.keymap=\x1b[2J", "cannot be shown"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_kernel_line(OTHERS + text)
    assert words in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value", ["", "x", "x:", ":/x", "x:y", "x:/../y", "x:/y/", "x:/", "/dev/sdb1:/x"]
)
def test_images_that_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"imager\.image"):
        parse_kernel_line(f'imager.restore=auto imager.target=only-disk "imager.image={value}"')


@pytest.mark.parametrize("value", ["/dev/sda", "sda", "serial:", "wwn: ", "only", "model:x"])
def test_targets_that_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"imager\.target"):
        parse_kernel_line(f'imager.restore=auto imager.image=newest "imager.target={value}"')


@given(st.text(alphabet=st.sampled_from('imager.=:/" \x00restoautgkylx-0'), max_size=200))
def test_any_text_is_orders_or_one_line(text: str) -> None:
    try:
        line = parse_kernel_line(text)
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert line.job is None or "imager.restore=auto" in line.job.words
