"""A schedule under a real systemd: its timer, what the unit shows, an absent store, a missed run."""

from __future__ import annotations

import random
import re
from pathlib import Path

from tests.boot.script import run_script
from tests.boot.vm import VmDisk
from tests.disks import MIB
from tests.loop import LoopDevice, mounted, run

_WAIT = """\
wait_for_run() {
    i=0
    while [ $i -lt 900 ]; do
        systemctl show imager-night.service -p StatusText --value | sed 's/^./STATUS &/'
        [ "$(systemctl show imager-night.service -p ExecMainExitTimestampMonotonic --value)" = 0 ] || break
        sleep 0.3
        i=$((i + 1))
    done
    journalctl -u imager-night.service --no-pager -o cat | sed 's/^/JOURNAL /'
}
mkdir /backup /state
mount -L BACKUP /backup
mount -L STATE /state
"""
_FIRST = """\
imager store init /backup/store
when=$(date -d '+60 sec' '+%H:%M:%S')
imager schedule add /dev/vda --store /backup/store --calendar "*-*-* $when" --delay 0 \\
    --name night --wake --check-within 30d --before 'systemd-inhibit --list --no-pager'
imager schedule list
systemctl show imager-night.timer -p WakeSystem -p Persistent
wait_for_run
imager status; echo "LIGHT $?"
umount /backup
systemctl start imager-night.service; echo "STARTED $?"
systemctl show imager-night.service -p Result -p ExecMainStatus -p NRestarts
sleep 5
echo "ABSENT $(journalctl -u imager-night.service --no-pager -o cat | grep -c '^night: absent')"
imager status || echo "LIGHT $?"
cp -a /etc/systemd/system/imager-night.* /var/lib/systemd/timers /var/lib/imager /state
sync
"""
_SECOND = """\
date -s "$(date -d '+25 hours')"
cp -a /state/imager-night.* /etc/systemd/system
mkdir -p /var/lib/systemd/timers
cp -a /state/timers/. /var/lib/systemd/timers
cp -a /state/imager /var/lib
systemctl daemon-reload
systemctl start imager-night.timer
wait_for_run
imager status; echo "LIGHT $?"
"""


def test_nights_under_systemd(tmp_path: Path) -> None:
    """A timer due in a minute; then the store goes; then the power, over the time of the next run."""
    source = tmp_path / "source"
    source.write_bytes(random.Random(4).randbytes(48 * MIB))
    disks = [VmDisk(source, "virtio", "PATIENT")]
    for label, size in (("BACKUP", 256), ("STATE", 32)):
        with LoopDevice(tmp_path / label, size * MIB) as device:
            run("mkfs.ext4", "-q", "-L", label, device.path)
        disks.append(VmDisk(tmp_path / label, "virtio", label))
    said = run_script(tmp_path, _WAIT + _FIRST, disks)
    assert re.search(r"^night .*\d\d:\d\d$", said, re.MULTILINE), said
    assert "WakeSystem=yes" in said and "Persistent=yes" in said
    assert re.search(r"^JOURNAL imager .*(sleep:shutdown|shutdown:sleep)", said, re.MULTILINE), said
    assert re.search(r"^STATUS (capture|survey|pruning|check)", said, re.MULTILINE), said
    assert re.search(r"^JOURNAL night: ok: \S+\.img, .*\(full: .*\); \d+ s$", said, re.MULTILINE)
    assert "green" in said and "LIGHT 0" in said, said
    assert "STARTED 0" in said and "ABSENT 1" in said
    for fact in ("Result=success", "ExecMainStatus=10", "NRestarts=0"):
        assert fact in said
    assert "yellow" in said and "connect or mount its disk" in said and "LIGHT 3" in said, said
    said = run_script(tmp_path, _WAIT + _SECOND, disks)
    assert re.search(r"^JOURNAL night: ok: \S+\.img, .*\(incremental\)", said, re.MULTILINE), said
    assert "LIGHT 0" in said
    with LoopDevice(tmp_path / "BACKUP") as device, mounted(device.path, tmp_path / "p") as place:
        images = sorted(path.name for path in place.glob("store/*/*/*.img"))
    assert len(images) == 2 and images[0][:10] != images[1][:10]
