/**
 * Every limit that guards SWAM's memory, disk and waiting against peers, guests, libvirt and configuration, in one
 * place. The unit is the end of the name; the comment of each says why it has that value. docs/limits.md is the same
 * list (a test compares them). Relations that must hold between limits are asserted when this file is loaded.
 * What the user may set lies in config/schema.ts; constants of a protocol (NBD's own 28 bytes) lie with its codec.
 */
import assert from 'node:assert/strict'
import { BLOCK_BYTES, GIB, KIB, MIB } from './units.ts'

/** Text of swam.toml. A config with a thousand peers is 400 KiB; more is a mistake (a wrong path, a device). */
export const CONFIG_TEXT_BYTES_MAX: number = 1 * MIB

/** Peers in swam.toml. Beyond that a directory service is the way to find peers. */
export const PEERS_MAX: number = 1024

/** Addresses of one peer: a few networks, two families each. */
export const PEER_ADDRESSES_MAX: number = 16

/** Directories in `images` and in `share`. Each is resolved for each path that is checked. */
export const IMAGE_DIRECTORIES_MAX: number = 256

/** Ports in `migrationPorts`. libvirt's own range has 64; each may become a listener. */
export const MIGRATION_PORTS_MAX: number = 1024

/** A unix socket's path. The kernel's sun_path has 108 bytes, the last one is a zero. */
export const SOCKET_PATH_BYTES_MAX: number = 107

/** Domain XML, from libvirt to the hook and from virsh to the daemon. libvirt's own ceiling is 4 MiB; real guests have 10 KiB. */
export const DOMAIN_XML_BYTES_MAX: number = 1 * MIB

/** Nesting of elements in domain XML. libvirt's own documents nest about 10 deep, long backing chains more. */
export const DOMAIN_XML_DEPTH_MAX: number = 128

/** Elements in domain XML. 1 MiB of smallest elements would be 260,000 objects. */
export const DOMAIN_XML_ELEMENTS_MAX: number = 20_000

/** Disks of one guest. More than libvirt can attach to one virtio bus in practice. */
export const GUEST_DISKS_MAX: number = 256

/** Listening ports of one QEMU that the hook reports: RAM, NBD, VNC, SPICE, serial lines. */
export const GUEST_PORTS_MAX: number = 256

/** Size of one disk, and of an image that the hook creates. ext4, where most images lie, ends a file at 16 TiB. */
export const IMAGE_BYTES_MAX: number = 16 * 1024 * GIB

/** A guest's or image's name. libvirt makes file names of it, which end at 255 bytes. */
export const GUEST_NAME_BYTES_MAX: number = 255

/** A path that a hook, a config or a peer names: Linux's PATH_MAX without its zero. */
export const PATH_BYTES_MAX: number = 4095

/** Standard output of one virsh or nft call. Holds the largest domain XML and a listing of some 10,000 map elements. */
export const COMMAND_OUTPUT_BYTES_MAX: number = 4 * MIB

/** One virsh call. It takes 20 to 30 ms; on a busy libvirtd seconds. Several fit into the hook's deadline. */
export const VIRSH_DEADLINE_MS: number = 4_000

/** One nft call. It takes 5 ms; it waits when somebody else holds the kernel's lock. Must end well before an element expires. */
export const NFT_DEADLINE_MS: number = 2_000

/** One look-up of a user by name; a directory service may have to answer. */
export const USER_LOOKUP_DEADLINE_MS: number = 3_000

/** One `qemu-img create`: writes a few KiB of metadata; slow disks take a second. */
export const QEMU_IMG_DEADLINE_MS: number = 10_000

/** Life of an armed redirect element unless refreshed. After a kill -9 migrations go direct when it has passed; the promise is 10 s. */
export const REDIRECT_TTL_MS: number = 8_000

/** How often the owner refreshes armed elements. Two refreshes may fail before an element expires. */
export const REDIRECT_REFRESH_MS: number = 2_500

/** Armed elements: ports times addresses of the peers with a migration under way. */
export const REDIRECT_ELEMENTS_MAX: number = 65_536

/** The hook's longest work at `migrate begin`, whatever the config says: libvirt itself waits without a limit. */
export const HOOK_DEADLINE_MS_MAX: number = 120_000

/** The hook's work at started, stopped and release. libvirt holds the guest's lock meanwhile. */
export const HOOK_LATER_DEADLINE_MS: number = 5_000

/** One request line at control.sock: a command with a few words. */
export const CONTROL_REQUEST_BYTES_MAX: number = 64 * KIB

/** One request line at hook.sock: domain XML inside JSON, which may double it. */
export const HOOK_REQUEST_BYTES_MAX: number = 2 * MIB + 64 * KIB

/** One answer line that the CLI accepts: a history of 10,000 migrations at 1.5 KiB. */
export const CONTROL_ANSWER_BYTES_MAX: number = 16 * MIB

/** Connections at one control socket at once. Each may hold one request line. */
export const CONTROL_CONNECTIONS_MAX: number = 64

/** Time a client of a control socket has to send its request line. */
export const CONTROL_REQUEST_DEADLINE_MS: number = 5_000

/** Time the CLI waits for an answer of the daemon. */
export const CONTROL_ANSWER_DEADLINE_MS: number = 10_000

/** /proc/net/tcp as read for one look-up: 150 bytes a socket, so some 200,000 sockets. */
export const PROC_NET_BYTES_MAX: number = 32 * MIB

assert(CONFIG_TEXT_BYTES_MAX >= PEERS_MAX * 512, 'a config with every allowed peer must fit its ceiling')
assert(
  HOOK_REQUEST_BYTES_MAX >= 2 * DOMAIN_XML_BYTES_MAX,
  'the largest XML must fit into a hook request as JSON',
)
assert(
  COMMAND_OUTPUT_BYTES_MAX > DOMAIN_XML_BYTES_MAX,
  'virsh must be able to print the largest XML that is read',
)
assert(REDIRECT_TTL_MS < 10_000, 'an element must expire within 10 s')
assert(REDIRECT_TTL_MS >= 3 * REDIRECT_REFRESH_MS, 'two refreshes may fail before an element expires')
assert(NFT_DEADLINE_MS + REDIRECT_REFRESH_MS < REDIRECT_TTL_MS, 'a slow nft must not let an element expire')
assert(VIRSH_DEADLINE_MS * 2 < 20_000, 'two virsh calls in a row must fit the default hookDeadlineMs')
assert(HOOK_LATER_DEADLINE_MS < HOOK_DEADLINE_MS_MAX)
assert(IMAGE_BYTES_MAX <= Number.MAX_SAFE_INTEGER && IMAGE_BYTES_MAX % BLOCK_BYTES === 0)
