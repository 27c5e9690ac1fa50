"""Connect to a network share: an interface with an address, then address, user and password."""

from __future__ import annotations

from dataclasses import replace

from imager.errors import ImagerError
from imager.rescue.lock import working
from imager.rescue.network import Interface, Static, connect, interfaces, parse_static
from imager.rescue.screen import Choice, walk
from imager.rescue.session import Session
from imager.rescue.shares import Share, host_keys, known_hosts, mounted_share, parse_share
from imager.rescue.wifi import Network, Wireless
from imager.wording import printable

TITLE = "Connect to a network share"
_ADDRESSES = (
    "Where are the images?\n\n"
    "  smb://server/share           Windows, Samba, most NAS boxes\n"
    "  nfs://server/folder          NFS\n"
    "  ssh://server/folder          any machine with SSH"
)


class ShareFlow:
    """One way through the steps, which may go back and forth."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._share: Share | None = None

    def run(self) -> None:
        """From an interface to a share that answers."""
        connected = any(found.addresses for found in interfaces(self._session.machine))
        if not connected and not NetworkFlow(self._session).run():
            return
        while walk(self._ask_address, self._ask_host, self._ask_user):
            if self._try():
                return

    def _ask_address(self) -> bool:
        session = self._session
        text = self._share.address if self._share else session.answers.share
        while True:
            answer = session.screen.ask(TITLE, _ADDRESSES, text)
            if answer is None:
                return False
            text = answer
            try:
                self._share = parse_share(text)
            except ImagerError as error:
                session.fail(error)
            else:
                return True

    def _ask_host(self) -> bool | None:
        """Whether the person trusts an SSH server that is not known yet."""
        session, share = self._session, self._known()
        file = known_hosts(session.machine.state)
        if share.kind != "ssh":
            return None
        session.screen.notice(TITLE, f"Asking {share.host} for its name ...")
        try:
            lines, shown = host_keys(share)
        except ImagerError as error:
            session.fail(error)
            return False
        if file.exists() and file.read_text() == lines:
            return None
        agreed = session.screen.confirm(
            TITLE,
            "The server shows these keys. If you can, compare one of them with what the server "
            "itself prints (ssh-keygen -l):\n\n" + "\n".join(shown) + "\n\nIs it the right server?",
        )
        if agreed:
            file.write_text(lines)
        return bool(agreed)

    def _ask_user(self) -> bool | None:
        session, share = self._session, self._known()
        if share.kind == "nfs":
            return None
        user = session.screen.ask(
            TITLE,
            "User name on the server" + (" (empty: as a guest)" if share.kind == "smb" else ""),
            share.user or session.answers.user,
        )
        if user is None:
            return False
        password = domain = ""
        if share.kind == "smb" and "/" in user.replace("\\", "/"):
            domain, _, user = user.replace("\\", "/").partition("/")
        if user or share.kind == "ssh":
            hint = "" if share.kind == "smb" else " (empty: this machine's SSH key)"
            answer = session.screen.password(TITLE, f"Password of {user or 'root'}{hint}")
            if answer is None:
                return self._ask_user()
            password = answer
        self._share = replace(share, user=user, domain=domain, password=password)
        return True

    def _try(self) -> bool:
        session, share = self._session, self._known()
        session.screen.notice(TITLE, f"Connecting to {share.address} ...")
        try:
            with (
                working(session.lock, session.words(f"connecting to {share.address}")),
                mounted_share(share, session.machine.state),
            ):
                pass
        except ImagerError as error:
            session.fail(error)
            return False
        session.shares = [one for one in session.shares if one.address != share.address]
        session.shares.append(share)
        session.journal.note(f"connected to {share.address}")
        session.remember(share=share.address, user=share.user, domain=share.domain)
        session.screen.show(
            TITLE,
            f"{share.address} answers. Its images are listed with those of the disks now; it is "
            "mounted only while it is needed, and read-only unless an image is saved there.",
        )
        return True

    def _known(self) -> Share:
        assert self._share is not None
        return self._share


class NetworkFlow:
    """An address for this machine."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._interface: Interface | None = None

    def run(self) -> bool:
        """Whether there is an address at the end."""
        while walk(self._choose_interface, self._join):
            if self._address():
                return True
        return False

    def _choose_interface(self) -> bool:
        session = self._session
        found = interfaces(session.machine)
        if not found:
            session.screen.show(
                TITLE,
                "No network card was found. It may need firmware that is not on this medium: a "
                "USB network adapter often helps.",
            )
            return False
        chosen = session.screen.menu(
            TITLE, "Through which network card?", [_choice(one) for one in found]
        )
        self._interface = next((one for one in found if one.name == chosen), None)
        return self._interface is not None

    def _join(self) -> bool | None:
        """For a wireless card: choose a network, and join it."""
        session, interface = self._session, self._known()
        if not interface.wireless:
            return None
        try:
            session.screen.notice(TITLE, "Listening for wireless networks ...")
            wireless = Wireless(session.machine, interface.name)
            networks = wireless.scan()
            network = self._choose_network(networks)
            if network is None:
                return False
            password = ""
            if network.secured:
                answer = session.screen.password(TITLE, f"Password of {network.name}")
                if answer is None:
                    return False
                password = answer
            session.screen.notice(TITLE, f"Joining {network.name} ...")
            wireless.join(network.ssid, password)
        except ImagerError as error:
            session.fail(error)
            return False
        session.remember(wifi=network.name)
        return True

    def _choose_network(self, networks: tuple[Network, ...]) -> Network | None:
        session = self._session
        usable = [network for network in networks if not network.enterprise]
        if not usable:
            session.screen.show(TITLE, "No wireless network that can be joined is in reach.")
            return None
        last = next((n for n in usable if n.name == session.answers.wifi), usable[0])
        chosen = session.screen.menu(
            TITLE,
            "Which wireless network?",
            [
                Choice(str(number), f"{network.name}{'' if network.secured else '  (open)'}")
                for number, network in enumerate(usable, 1)
            ],
            str(usable.index(last) + 1),
        )
        return usable[int(chosen) - 1] if chosen else None

    def _address(self) -> bool:
        session, interface = self._session, self._known()
        chosen = session.screen.menu(
            TITLE,
            f"How does {interface.name} get its address?",
            (
                Choice("dhcp", "From the network, as nearly everywhere"),
                Choice("fixed", "A fixed address, which you have to know"),
            ),
        )
        if chosen is None:
            return False
        static = self._ask_static() if chosen == "fixed" else None
        if chosen == "fixed" and static is None:
            return False
        session.screen.notice(TITLE, f"Waiting for an address on {interface.name} ...")
        try:
            found = connect(session.machine, interface.name, static)
        except ImagerError as error:
            session.fail(error)
            return False
        session.journal.note(f"{interface.name} has {', '.join(found)}")
        return True

    def _ask_static(self) -> Static | None:
        texts: list[str] = []
        for question in (
            "Address of this machine, with its prefix length (192.168.1.50/24)",
            "Gateway (may be empty)",
            "Name servers, separated by blanks (may be empty)",
        ):
            answer = self._session.screen.ask(TITLE, question)
            if answer is None:
                return None
            texts.append(answer)
        address, gateway, dns = texts
        try:
            return parse_static(address, gateway, dns)
        except ImagerError as error:
            self._session.fail(error)
            return None

    def _known(self) -> Interface:
        assert self._interface is not None
        return self._interface


def _choice(interface: Interface) -> Choice:
    kind = "wireless" if interface.wireless else "cable"
    state = ", ".join(interface.addresses) or ("connected" if interface.carrier else "no signal")
    return Choice(interface.name, printable(f"{kind}, {state}"))
