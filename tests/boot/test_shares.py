"""Images on servers of the network: SMB and NFS, with an address by DHCP and with a fixed one."""

from __future__ import annotations

from pathlib import Path

from imager.capture import CaptureOptions, capture
from imager.check import check
from tests.boot.kernel_line import with_orders
from tests.boot.keys import DOWN, ENTER, UP, Keys
from tests.boot.medium import ci_medium
from tests.boot.share_servers import (
    HOST,
    NFS_PATH,
    SMB_PASSWORD,
    SMB_SHARE,
    SMB_USER,
    nfs_server,
    smb_server,
)
from tests.boot.vm import Vm, VmDisk
from tests.disks import clone
from tests.small_disk import SMALL_SIZE, Small, garbage

MACHINE = "office-pc"
TARGET = "S6PXNZ0R401234"
CARD = "eth0"
"""What the card is called where the kernel line says that names do not tell of slots."""
_NAMES = "net.ifnames=0"
NETWORK = ("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
LONG = 900
_NO_DHCP = "/run/systemd/network/70-none.network"


def lent(folder: Path, small: Small) -> Path:
    """A folder with an image of the small disk."""
    place = folder / "lent"
    place.mkdir()
    capture(small.disk, place / f"{MACHINE}.img", CaptureOptions(host=MACHINE))
    return place


def medium(folder: Path, words: str = "") -> VmDisk:
    """The medium with `words` on its kernel line."""
    iso = with_orders(ci_medium(), f"{_NAMES} {words}", folder / "medium.iso")
    return VmDisk(iso, "usb", keep=False)


def in_the_shell(keys: Keys, vm: Vm, *commands: str) -> None:
    """From the menu and back to it."""
    keys.press(*[DOWN] * 7, ENTER)
    vm.serial.wait("This is a shell", LONG)
    for number, command in enumerate(commands):
        vm.serial.send(f"{command} && echo do''ne-{number}\r")
        vm.serial.wait(f"done-{number}", LONG)
    keys.type("exit")
    keys.see("Shell, for those who know")


def test_smb_without_dhcp(small: Small, tmp_path: Path) -> None:
    """A fixed address, typed; a password that is wrong, then right; then a restore."""
    target = garbage(tmp_path / "target", SMALL_SIZE)
    with (
        smb_server(lent(tmp_path, small), tmp_path / "smb") as port,
        Vm([medium(tmp_path), VmDisk(target, "sata", TARGET)], options=NETWORK) as vm,
    ):
        keys = Keys(vm)
        keys.start()
        in_the_shell(
            *(keys, vm, "mkdir -p /run/systemd/network"),
            f"printf '[Match]\\nName={CARD}\\n[Network]\\nDHCP=no\\n' > {_NO_DHCP}",
            f"networkctl reload && networkctl reconfigure {CARD} && ip address flush {CARD}",
        )
        keys.press(*[UP] * 4, ENTER)
        keys.see("Through which network card?", CARD)
        keys.press(ENTER)
        keys.see("From the network, as nearly everywhere")
        keys.press(DOWN, ENTER)
        keys.see("Address of this machine")
        keys.type("10.0.2.77/24")
        keys.see("Gateway")
        keys.type(HOST)
        keys.see("Name servers")
        keys.press(ENTER)
        keys.see("Where are the images?")
        keys.type(f"smb://{HOST}:{port}/{SMB_SHARE}")
        for password in ("wrong", SMB_PASSWORD):
            keys.see("User name on the server")
            keys.type(SMB_USER if password == "wrong" else "")
            keys.see(f"Password of {SMB_USER}")
            keys.type(password)
            if password == "wrong":
                keys.see("That did not work", "cannot be mounted", "Permission denied")
                keys.press(ENTER)
                keys.see("Where are the images?")
                keys.press(ENTER)
        keys.see("answers", "listed with those of the disks")
        keys.press(ENTER)
        keys.see("Hardware report")
        keys.press(*[UP] * 3, ENTER)
        keys.see("Which image", MACHINE, f"smb://{HOST}")
        keys.type(keys.to_the_last_question(TARGET))
        keys.see("What now?", "verdict: ok", seconds=LONG)
        keys.press(*[DOWN] * 3, ENTER)
        keys.see("Hardware report")
        in_the_shell(keys, vm, f"ip address show {CARD} | grep -q 'inet 10.0.2.77/24 '")
    assert check(tmp_path / f"lent/{MACHINE}.img", against=target).verdict == "ok"


def test_saved_onto_nfs(small: Small, tmp_path: Path) -> None:
    """The machine's disk is saved onto a share, with an address by DHCP."""
    place = tmp_path / "lent"
    place.mkdir()
    old = clone(small.disk, tmp_path / "old")
    with (
        nfs_server(place, tmp_path / "nfs") as port,
        Vm([medium(tmp_path), VmDisk(old, "sata", TARGET)], options=NETWORK) as vm,
    ):
        keys = Keys(vm)
        keys.start()
        in_the_shell(keys, vm, f"until ip address show {CARD} | grep -q 'inet '; do sleep 1; done")
        keys.press(*[UP] * 4, ENTER)
        keys.see("Where are the images?")
        keys.type(f"nfs://{HOST}:{port}{NFS_PATH}")
        keys.see("answers", "listed with those of the disks")
        keys.press(ENTER)
        keys.see("Hardware report")
        keys.press(UP, UP, ENTER)
        keys.see("Which disk shall be saved?", TARGET)
        keys.press(ENTER)
        keys.see("Where shall the image go?", "network share")
        keys.press(ENTER)
        keys.see("What is the machine called?")
        keys.press("\x15")
        keys.type(MACHINE)
        keys.see("The plan", TARGET, f"nfs://{HOST}", "are free there")
        keys.press(ENTER)
        keys.see("Saved", "checked: ok", "verdict: ok", seconds=LONG)
    (image,) = (place / "images").glob(f"{MACHINE}-*.img")
    assert check(image, against=small.disk).verdict == "ok"


def test_job_from_nfs(small: Small, tmp_path: Path) -> None:
    """Nobody is there; the address stands on the kernel line."""
    target = garbage(tmp_path / "target", SMALL_SIZE)
    with nfs_server(lent(tmp_path, small), tmp_path / "nfs") as port:
        words = (
            f"imager.restore=auto imager.net={CARD}:10.0.2.78/24:{HOST} "
            f"imager.share=nfs://{HOST}:{port}{NFS_PATH} "
            f"imager.image=share:/{MACHINE}.img imager.target=serial:{TARGET}"
        )
        disks = [medium(tmp_path, words), VmDisk(target, "sata", TARGET)]
        with Vm(disks, options=NETWORK) as vm:
            vm.serial.wait("The restore is finished", LONG)
            vm.wait_off(LONG)
    assert check(tmp_path / f"lent/{MACHINE}.img", against=target).verdict == "ok"
