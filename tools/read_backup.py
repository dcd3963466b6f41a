#!/usr/bin/env python3
"""Lists and extracts the streams of backups of Fettler, with none of Fettler's code.

It follows docs/repository-format.md and needs `cryptography` (44 or newer for passphrases), `zstandard` and `blake3`. It reads a
repository in a local folder; copy a bucket into one first. Everything is authenticated before it is written out.

    read_backup.py REPOSITORY --key-file KEY list
    FETTLER_PASSPHRASE=… read_backup.py REPOSITORY list [BACKUP]
    read_backup.py REPOSITORY --key-file KEY extract BACKUP FOLDER [STREAM …]
"""
import argparse, base64, json, os, struct, sys
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = 1
TENANT, PACK, INDEX, MANIFEST = 1, 2, 3, 4
FOLDERS = {PACK: "packs", INDEX: "indexes", MANIFEST: "manifests"}


class Damaged(Exception):
    pass


def derive(what, material):
    return blake3(material, derive_key_context="fettler repository v1 " + what).digest()


def passphrase_key(passphrase, salt, cost):
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    cost = {"iterations": cost["passes"], "lanes": 1, "memory_cost": cost["memory_kib"]}
    return Argon2id(salt=salt, length=32, **cost).derive(passphrase.encode())


def key_file_key(path):
    for line in Path(path).read_text().splitlines():
        if line.strip().startswith("fettler-key-1"):
            return bytes.fromhex(line.strip()[len("fettler-key-1"):].strip())
    sys.exit(f"{path} holds no line that begins with fettler-key-1")


def unframe(frame):
    how, rest = frame[0], frame[1:]
    return zstandard.ZstdDecompressor().decompress(rest) if how == 1 else rest


class Tenant:
    """A tenant's folder, opened with a key."""

    def __init__(self, repository_id, folder, unlock):
        self.folder = folder
        self.bound = repository_id + bytes.fromhex(folder.name)
        origin = (folder / "tenant").read_bytes()
        data_key_id = origin[16:48].hex()
        slots = [json.loads(path.read_text()) for path in (folder / "keys").glob("*.json")]
        opened = (self.unwrap(slot, unlock) for slot in slots if slot["data_key_id"] == data_key_id)
        if (data_key := next(filter(None, opened), None)) is None:
            raise PermissionError("the key does not open this tenant")
        self.seal_key = derive("sealed objects", data_key)
        self.chunk_key = derive("chunk ids", data_key)
        self.name = json.loads(self.frames(TENANT, bytes(32), origin, 1)[0])

    def unwrap(self, slot, unlock):
        salt = bytes.fromhex(slot["salt"])
        if (material := unlock(slot, salt)) is None:
            return None
        associated = b"fettler key slot 1" + self.bound + slot["data_key_id"].encode()
        try:
            return AESGCM(derive("key slot", material + salt)).decrypt(bytes(12), bytes.fromhex(slot["wrapped"]), associated)
        except InvalidTag:
            return None

    def opener(self, kind, name, salt):
        """A function that opens a sealed frame at a position of an object."""
        aead = AESGCM(blake3(bytes([kind]) + salt, key=self.seal_key).digest())
        bound = bytes([FORMAT]) + self.bound + bytes([kind]) + name

        def open_frame(position, sealed):
            place = struct.pack(">Q", position)
            try:
                return aead.decrypt(bytes(4) + place, sealed, bound + place)
            except InvalidTag:
                raise Damaged(f"{FOLDERS.get(kind, 'tenant')}/{name.hex()} does not open at {position}") from None

        return open_frame

    def frames(self, kind, name, data, count):
        if data[:7] != b"FETTLER" or data[7] != FORMAT or data[8:16] != bytes([kind]) + bytes(7):
            raise Damaged(f"{name.hex()} has no header of format {FORMAT}")
        open_frame, at, frames = self.opener(kind, name, data[16:48]), 48, []
        for number in range(count - 1):
            (length,) = struct.unpack_from("<I", data, at)
            frames.append(unframe(open_frame(number, data[at + 4:at + 4 + length])))
            at += 4 + length
        return frames + [unframe(open_frame(count - 1, data[at:]))]

    def object(self, kind, name, count):
        return self.frames(kind, name, (self.folder / FOLDERS[kind] / name.hex()).read_bytes(), count)

    def backups(self):
        """Heads and bodies of all backups, oldest first; tombstones and what was forgotten left out."""
        found = []
        for path in (self.folder / "manifests").glob("?" * 64):
            head, body = (json.loads(frame) for frame in self.object(MANIFEST, bytes.fromhex(path.name), 2))
            there = lambda folder: (self.folder / folder / path.name).exists()
            if head["is"] == "backup" and (there("holds") or not there("forgotten")):
                found.append((head, body))
        return sorted(found, key=lambda backup: backup[0]["started"])

    def entries(self, stream):
        """The chunks of a stream in order: id, pack, offset, sealed bytes, plain bytes."""
        lists = [self.object(INDEX, bytes.fromhex(index["name"]), 1)[0] for index in stream.get("indexes", [])]
        if stream.get("inline"):
            lists.append(base64.b64decode(stream["inline"]))
        for data in lists:
            packs, entries = struct.unpack_from("<II", data)
            names = [data[8 + 32 * at:40 + 32 * at] for at in range(packs)]
            for at in range(entries):
                chunk, pack, offset, sealed, plain = struct.unpack_from("<32sIIII", data, 8 + 32 * packs + 48 * at)
                yield chunk, names[pack], offset, sealed, plain

    def read(self, stream):
        """The chunks of a stream, authentic."""
        pack, source, open_frame, total = None, None, None, 0
        for chunk_id, name, offset, sealed, plain in self.entries(stream):
            if name != pack:
                pack, source = name, open(self.folder / FOLDERS[PACK] / name.hex(), "rb")
                open_frame = self.opener(PACK, name, name)
            source.seek(offset)
            chunk = unframe(open_frame(offset, source.read(sealed)))
            if len(chunk) != plain or blake3(chunk, key=self.chunk_key).digest() != chunk_id:
                raise Damaged(f"packs/{name.hex()} holds another chunk at {offset}")
            total += plain
            yield chunk
        if total != stream["bytes"]:
            raise Damaged(f"stream {stream['name']} has {total} bytes instead of {stream['bytes']}")


def tenants(repository, unlock):
    config = json.loads((repository / "fettler-repository.json").read_text())
    assert config["format"] == FORMAT, "the repository has a newer format"
    opened = []
    for folder in sorted((repository / "tenants").iterdir()):
        if (folder / "tenant").exists():
            try:
                opened.append(Tenant(bytes.fromhex(config["id"]), folder, unlock))
            except PermissionError:
                print(f"{folder.name}: another key opens this tenant", file=sys.stderr)
    return opened or sys.exit("the key opens nothing here")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--key-file", help="without it, the passphrase in FETTLER_PASSPHRASE is used")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").add_argument("backup", nargs="?", help="list this backup's streams")
    extract = commands.add_parser("extract")
    extract.add_argument("backup")
    extract.add_argument("folder", type=Path)
    extract.add_argument("streams", nargs="*", help="all when none is named")
    options = parser.parse_args()

    def unlock(slot, salt):
        if options.key_file:
            return key_file_key(options.key_file) if slot["kind"] == "key_file" else None
        passphrase = os.environ.get("FETTLER_PASSPHRASE") or sys.exit("give --key-file or set FETTLER_PASSPHRASE")
        return passphrase_key(passphrase, salt, slot["argon2id"]) if slot["kind"] == "passphrase" else None

    for tenant in tenants(options.repository, unlock):
        for head, body in tenant.backups():
            if not options.backup:
                shown = (head[field] for field in ("id", "database_name", "engine", "started", "bytes_read"))
                print(*shown, tenant.name, sep="\t")
            for number, stream in enumerate(body["streams"] if options.backup == head["id"] else []):
                if options.command == "list":
                    print(stream["name"], stream["bytes"], stream["rows"], sep="\t")
                elif not options.streams or stream["name"] in options.streams:
                    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in stream["name"])[:150]
                    options.folder.mkdir(parents=True, exist_ok=True)
                    with open(options.folder / f"{number:06}-{safe}", "xb") as target:
                        for chunk in tenant.read(stream):
                            target.write(chunk)
                    print(f"{number:06}-{safe}", stream["name"], stream["bytes"], sep="\t")
            if options.backup == head["id"]:
                return
    if options.backup:
        sys.exit(f"there is no backup {options.backup}")


if __name__ == "__main__":
    try:
        main()
    except Damaged as damage:
        sys.exit(f"damaged: {damage}")
