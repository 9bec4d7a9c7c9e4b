/**
 * Every limit that guards SWAM's memory, disk and waiting against peers, guests, libvirt and configuration, in one
 * place. The unit is in the name; the comment of each says why it has that value. docs/limits.md is the same list (a test
 * compares them); relations that must hold between limits are test/unit/config/limits-depend.test.ts.
 * What the user may set lies in config/schema.ts; constants of a protocol (NBD's own 28 bytes) lie with its codec; what
 * only tunes speed and bounds nothing (the pacing's gains, zstd's level) lies where it is used.
 */
import { GIB, KIB, MIB } from './units.ts'

// ---- Configuration ---------------------------------------------------------------------------------------------

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

// ---- Guests, libvirt and the machine ---------------------------------------------------------------------------

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
/** What is kept of a program's standard error, for the message: its first lines say what went wrong. */
export const COMMAND_STDERR_BYTES_MAX: number = 8 * KIB
/** What is kept of the standard error of the nft process that owns the anchor: it lives as long as swamd. */
export const NAT_ANCHOR_STDERR_CHARACTERS_MAX: number = 1000
/** Command line of a guest's QEMU, searched for the uuid: the kernel's own ceiling for one is 2 MiB with usual stacks. */
export const COMMAND_LINE_BYTES_MAX: number = 2 * MIB
/** virsh calls at once for the disks of one guest. */
export const LIBVIRT_DISK_CALLS_MAX: number = 4
/** Processes of one program (virsh, nft, ss) that swamd runs at once: a peer may ask about guests a thousand times. */
export const COMMANDS_AT_ONCE_MAX: number = 8
/** Calls of one program that wait for their turn; further ones are refused at once. */
export const COMMANDS_WAITING_MAX: number = 256
/** One virsh call. It takes 20 to 30 ms; seconds on a busy host that starts eight guests. Two fit into the hook's deadline. */
export const VIRSH_DEADLINE_MS: number = 8_000
/** What one turn of the event loop spends on frames, NBD requests and reads that can wait. One round of libuv's loop may have two. */
export const LOOP_TURN_MS: number = 4
/** One nft call. It takes 5 ms; seconds when eight guests start on two cores. Must end before an element expires. */
export const NFT_DEADLINE_MS: number = 5_000
/** One `ss` call: it only counts bytes for the report. */
export const SS_DEADLINE_MS: number = 2_000
/** Standard output of one `ss` call, which is filtered by both ports: a few lines. */
export const SS_OUTPUT_BYTES_MAX: number = 1 * MIB
/** Connections whose bytes one `ss` call counts: those of 16 migrations twice; further ones wait for the next call. */
export const TCP_NAMES_ASKED_MAX: number = 64
/** One look-up of a user by name; a directory service may have to answer. */
export const USER_LOOKUP_DEADLINE_MS: number = 3_000
/** One `qemu-img create`: writes a few KiB of metadata; slow disks take a second. */
export const QEMU_IMG_DEADLINE_MS: number = 10_000
/** /proc/net/tcp as read for one look-up: 150 bytes a socket, so some 200,000 sockets. */
export const PROC_NET_BYTES_MAX: number = 32 * MIB
/** Of these, sockets that are looked at in one turn of the event loop. */
export const PROC_NET_ROWS_MAX: number = 2000

// ---- Redirect --------------------------------------------------------------------------------------------------

/** Life of an armed redirect element unless refreshed. After a kill -9 migrations go direct when it has passed; the promise is 10 s. */
export const REDIRECT_TTL_MS: number = 8_000
/** How often the owner refreshes armed elements. Two refreshes may fail before an element expires. */
export const REDIRECT_REFRESH_MS: number = 2_500
/** Armed elements: ports times addresses of the peers with a migration under way. */
export const REDIRECT_ELEMENTS_MAX: number = 65_536

// ---- Watchdog -----------------------------------------------------------------------------------------------

/** Time without progress of swamd after which its watchdog kills it, up to a second later: guests may wait for it that long. */
export const WATCHDOG_STALL_MS: number = 8_000
/** How often swamd shows its watchdog that it works: at least once between two looks of it. */
export const WATCHDOG_BEAT_MS: number = 500
/** How often the watchdog looks: one `sleep` of a shell, the shortest that every system has. */
export const WATCHDOG_TURN_MS: number = 1_000
/** Rest before a watchdog that ended is started again: it may end at once for as long as something lasts. */
export const WATCHDOG_RESTART_MS: number = 1_000
/** How often the watchdog of swamd tells that of systemd that swamd works; the unit's WatchdogSec is several times that. */
export const WATCHDOG_NOTIFY_MS: number = 5_000
/** Time that systemd-notify has to say that swamd is ready, or stops. */
export const NOTIFY_DEADLINE_MS: number = 5_000

// ---- Hook and control sockets ----------------------------------------------------------------------------------

/** The hook's longest work at `migrate begin` and `started begin`, whatever the config says: libvirt itself waits without a limit. */
export const HOOK_DEADLINE_MS_MAX: number = 120_000
/** The hook's work at stopped and release. libvirt holds the guest's lock meanwhile. */
export const HOOK_LATER_DEADLINE_MS: number = 5_000
/** One message of the hook to the user of virsh: a line or two of a terminal. */
export const HOOK_MESSAGE_CHARACTERS_MAX: number = 500
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

// ---- Migrations ------------------------------------------------------------------------------------------------

/** Migrations under way at once, each way. More than a host can run usefully; each has listeners and SSH connections. */
export const MIGRATIONS_MAX: number = 64
/** Disks of one migration that are carried: the disk number of a message ends there. */
export const MIGRATION_DISKS_MAX: number = 64
/** Far ports of one migration that are caught: RAM and NBD are two. Each is a listener and an nft element for each address. */
export const MIGRATION_CAUGHT_PORTS_MAX: number = 8
/** Migrations under way with one peer, each way: what a peer that announces without end may take of MIGRATIONS_MAX. */
export const PEER_MIGRATIONS_MAX: number = 32
/** Connections at the listeners of one migration that are not judged yet. `--parallel` opens at most 255 at once. */
export const DOOR_WAITING_MAX: number = 1024
/** Between two log lines about refused connections: whoever floods a listener does not fill the disk with them. */
export const DOOR_REFUSAL_LOG_MS: number = 1_000
/** Guests whose last beginning is remembered, to tell an old answer of libvirt from a new one. */
export const BEGUN_GUESTS_MAX: number = 4096
/** Migrations in the history. With a dozen a day that is a year. */
export const HISTORY_ENTRIES_MAX: number = 5000
/** Lines of it that are read in one turn of the event loop. */
export const HISTORY_LINES_MAX: number = 100
/** The history's file, before it is shortened; read whole for an answer. 5,000 entries have some 7 MiB. */
export const HISTORY_BYTES_MAX: number = 32 * MIB
/** The newest entries that are given as an answer; the CLI takes 16 MiB. A peer with 64 disks can make an entry of 300 KiB. */
export const HISTORY_ANSWER_CHARACTERS_MAX: number = 12 * MIB
/** An announced migration that is never armed: `started begin` comes within seconds, a slow incoming QEMU within a minute. */
export const MIGRATION_ANNOUNCED_MS: number = 120_000
/** How long `swam history` waits for a migration that is over to be written: mostly 2 to 4 s; a client waits longer. */
export const HISTORY_SETTLE_MS: number = 8_000
/** How often it looks meanwhile whether the migration is written. */
export const HISTORY_SETTLE_ASK_MS: number = 100
/** An armed migration to which nothing connects: libvirt connects at once. */
export const MIGRATION_IDLE_MS: number = 60_000
/** After the last connection is gone: the time in which another one may still come. It may delay the clean-up, nothing else. */
export const MIGRATION_LINGER_MS: number = 1_500
/** How often a source whose link broke asks the far daemon's control connection whether that daemon is still there. */
export const FAR_ASK_MS: number = 500
/** Acknowledged writes may take this long to drain: `virsh suspend` waits for that in QEMU's main loop, and flushes twice. */
export const MIGRATION_DRAIN_MS: number = 400
/** One connection to a port of the new QEMU, on this host. */
export const QEMU_CONNECT_MS: number = 5_000
/** A disk's opening waits this long for the scan of the target's holes; the scan goes on afterwards. */
export const TARGET_SCAN_WAIT_MS: number = 500
/** How often libvirt is asked, from the hook on, whether the new QEMU is there: one virsh call of 20 to 30 ms. */
export const START_ASK_MS: number = 1_000
/** A guest that was there at its start and is gone: this many times absent is failed. */
export const START_ABSENT_ASKS_MAX: number = 2
/** From the end of the hook until libvirt shows the guest: at once, but eight on two cores took 8 s. What is later goes direct. */
export const START_MS: number = 20_000
/** What a guest that is gone at the source became at the far side: that one asks its libvirt too, for OUTCOME_MS and one virsh more. */
export const OUTCOME_HEARD_MS: number = 20_000
/** Why a guest that libvirt kept here was refused at the far side: that one tells as soon as its new QEMU is gone. */
export const REFUSAL_HEARD_MS: number = 3_000
/** How often libvirt is asked what became of a guest, before the answer is "unknown". */
export const OUTCOME_ASKS_MAX: number = 20
/** The same in time: on a busy host each question takes its own. */
export const OUTCOME_MS: number = 11_000
/** Time between two such questions. */
export const OUTCOME_ASK_MS: number = 500
/** `--suspend` leaves the guest paused at the destination: paused this many times is arrived. */
export const OUTCOME_PAUSED_ASKS_MAX: number = 8
/** How often libvirt is asked whether a migration that goes past SWAM still runs. */
export const DIRECT_ASK_MS: number = 1000
/** How long a guest that comes past SWAM may take to appear at the destination. */
export const DIRECT_START_MS: number = 60_000
/** How long such a migration is watched at most: two days. */
export const DIRECT_WATCH_MS: number = 172_800_000
/** A failed migration's guest stays marked as incoming: libvirt's hooks for its end come after ours knows of it. */
export const FAILED_MARK_MS: number = 10_000
/** The same where its QEMU ran here: where the link is cut for good libvirt ends it half a minute later, and the hook reads the mark. */
export const STARTED_MARK_MS: number = 120_000

/** What the mark of an incoming guest may hold: the paths of its disks that were missing here. */
export const MARK_BYTES_MAX: number = 2 * MIB

// ---- Peers: SSH, bundles, calls, streams -----------------------------------------------------------------------

/** What one bundle keeps unacknowledged, and what its receiver holds undelivered. */
export const IN_FLIGHT_BYTES_MAX: number = 32 * MIB
/** The same over all bundles of a daemon, but for the least that each has. Four on a long link at full rate. */
export const BUNDLES_IN_FLIGHT_BYTES_MAX: number = 256 * MIB
/** What each bundle may have in flight whatever others have; all that a control bundle needs. */
export const BUNDLE_WINDOW_BYTES_MIN: number = 2 * MIB
/** Bounds the receiver's table of frames that came early. */
export const IN_FLIGHT_FRAMES_MAX: number = 16_384
/** Control frames pass the pacing, but not more bytes than this beyond it. */
export const CONTROL_EXTRA_BYTES: number = 4 * MIB
/** The same in frames: an empty frame has a header too. */
export const CONTROL_EXTRA_FRAMES: number = 1024
/** Control frames that wait in a bundle because the far end does not read: it asked for them, and is let go. */
export const CONTROL_QUEUE_BYTES_MAX: number = 16 * MIB
/** The same in frames: a small one that waits takes 300 bytes. Reports are gathered, so a break of the link leaves hundreds. */
export const CONTROL_QUEUE_FRAMES_MAX: number = 65_536
/** What waits in one channel for a far end that does not read: no honest one lets it come to this. */
export const CHANNEL_BACKLOG_BYTES_MAX: number = IN_FLIGHT_BYTES_MAX + 2 * CONTROL_EXTRA_BYTES
/** The same in frames: a PONG of 18 bytes that waits takes 300. Eight times what may be in flight, for acknowledgements. */
export const CHANNEL_BACKLOG_FRAMES_MAX: number = 131_072
/** A channel that ends is destroyed when its far end has not ended it either by then. */
export const CHANNEL_END_MS: number = 1_000
/** A quiet bundle is asked whether it is there. Three questions fit into the silence that ends it. */
export const PING_INTERVAL_MS: number = 5_000
/** A bundle from which nothing came for so long is lost. Longer than a busy far side's worst pause, shorter than libvirt's 30 s. */
export const SILENCE_MS_MAX: number = 15_000
/** A bundle that can be resumed gives up a link on which a PING went unanswered so long: TCP's own repeats grow ever rarer. */
export const BREAK_MS: number = 3_000
/** For how long a bundle is tried to be resumed; DESIGN wants memory to ride out a cut of 10 s. `linkDeadlineMs` of the config. */
export const RESUME_MS: number = 20_000
/** What `linkDeadlineMs` may be: libvirt's own connections end after some 30 s without an answer. */
export const RESUME_CONFIG_MS_MAX: number = 120_000
/** TCP's connect to one address in a try to resume: one repeated SYN fits in. */
export const RESUME_CONNECT_MS_MAX: number = 2_000
/** One try to resume, with login and channels. */
export const RESUME_TRY_MS_MAX: number = 8_000
/** The first pause between two tries to resume; it doubles with each. */
export const RESUME_BACKOFF_MS: number = 200
/** The longest pause between two tries to resume: a link that is back is found soon. */
export const RESUME_BACKOFF_MS_MAX: number = 1_000
/** A WRITE or FLUSH of QEMU that waited so long on a broken link is an EIO; see the config's `flushDeadlineMs`. */
export const FLUSH_DEADLINE_MS: number = 2_000
/** How often waiting requests of QEMU are held against that deadline. */
export const FLUSH_WATCH_MS: number = 250
/** Waits of QEMU that the account of a disk lists. While a guest is paused it asks for four FLUSHes. */
export const DISK_WAITS_MAX: number = 8
/** What `flushDeadlineMs` may be: for as long QEMU's main loop, and with it the guest and its monitor, may stand still. */
export const FLUSH_DEADLINE_MS_MAX: number = 60_000
/** How long a bundle that closes waits for its last frames to be acknowledged. */
export const CLOSE_MS_MAX: number = 5_000
/** The reason with which a bundle or a stream is given up; it goes into a log line. */
export const ABORT_REASON_BYTES_MAX: number = KIB
/** Dialling one bundle: TCP, SSH's key exchange, up to 8 channels with a process each at the far side. */
export const DIAL_MS_MAX: number = 15_000
/** swam-peer's line: a name and four numbers of a connection. */
export const PREAMBLE_BYTES_MAX: number = KIB
/** Bundles of which not all channels came yet. Honest peers open two or three at a time. */
export const HALF_OPEN_BUNDLES_MAX: number = 16
/** How long a channel may take for its hello, and a bundle to become complete. */
export const HALF_OPEN_MS_MAX: number = 10_000
/** Complete bundles that far sides dialled, over all peers: two for each migration, and control bundles. */
export const BUNDLES_MAX: number = 256
/** The same of one peer: 32 migrations and its control bundles. A peer that opens without end leaves room for others. */
export const PEER_BUNDLES_MAX: number = 66
/** Half-open bundles of one peer, so that others find room. */
export const PEER_HALF_OPEN_BUNDLES_MAX: number = 8
/** What is kept of what a far side's login says on standard error, for the message. */
export const PEER_STDERR_BYTES_MAX: number = 4 * KIB
/** Waiting before a peer is dialled again, at first: sshd's penalties grow with every failed login. */
export const PEER_BACKOFF_MS_MIN: number = 1_000
/** The same, at most: a peer that comes back is found within a minute. */
export const PEER_BACKOFF_MS_MAX: number = 60_000
/** Channels of one bundle: sshd allows 10 sessions a connection. */
export const CHANNELS_MAX: number = 8
/** The JSON of a hello: names and features. */
export const HELLO_BYTES_MAX: number = 4 * KIB
/** Features in a hello. There are three today. */
export const HELLO_FEATURES_MAX: number = 64
/** A host's name in a hello: the longest name of the domain name system. */
export const HELLO_NAME_CHARACTERS_MAX: number = 255
/** The smallest receive window that is accepted: less could not hold one frame of each class. */
export const HELLO_WINDOW_BYTES_MIN: number = 256 * KIB
/** The largest receive window that a far side may claim; what is sent stays below IN_FLIGHT_BYTES_MAX all the same. */
export const HELLO_WINDOW_BYTES_MAX: number = GIB
/** One call or answer between daemons, as JSON: 256 disks with paths of full length would be a MiB, real ones have 200 bytes each. */
export const RPC_BYTES_MAX: number = 256 * KIB
/** Our own calls to one peer that are not answered yet. */
export const RPC_CALLS_MAX: number = 1024
/** Calls of a peer that are served at once on one bundle; more are refused. Each may ask libvirt, a process of 20 ms. */
export const RPC_SERVED_MAX: number = 64
/** Control bundles of one peer. It has one; a second comes when the first is dead and that is not known here yet. */
export const PEER_CONTROL_BUNDLES_MAX: number = 2
/** One call, unless the caller says otherwise: a few virsh calls fit. */
export const RPC_TIMEOUT_MS: number = 10_000
/** A call to a peer within a migration. Shorter than RPC_TIMEOUT_MS, so that the hook's deadline holds several. */
export const PEER_CALL_MS: number = 8_000
/** Asking all peers who runs a guest, at `migrate begin`: virsh waits for it. One slow call of virsh there fits. */
export const LOCATE_MS: number = 10_000
/** The same of a peer that is not connected: it may just have come back, and a migration that is none of its own waits for it. */
export const LOCATE_ABSENT_MS: number = 4_000
/** How long the source believes what it told a peer of a guest, but for whether it runs: the announcement follows at once. */
export const LOCATED_MS: number = 30_000
/** A round trip from which on a migration's bundles have eight channels each, over two SSH connections: one has some 3 MB under way. */
export const LONG_LINK_MS: number = 75
/** What one stream may send beyond what its far end has read. */
export const STREAM_WINDOW_BYTES: number = 4 * MIB
/** The same for the first one that an end opens on a bundle: RAM at 1 Gbit/s and 130 ms. */
export const STREAM_WIDE_WINDOW_BYTES: number = 16 * MIB
/** Bytes in one frame of a stream: small enough that control frames do not wait long behind it. */
export const STREAM_CHUNK_BYTES_MAX: number = 128 * KIB
/** Streams of one bundle. `--parallel` with 255 connections is QEMU's own ceiling. */
export const STREAMS_MAX: number = 256
/** What is said of a stream when it opens: its port. */
export const STREAM_META_BYTES_MAX: number = KIB

// ---- Joining of peers ------------------------------------------------------------------------------------------

/** One line of `swam peer add` and `peer accept` to each other: what a host says of itself has some 2 KiB. */
export const JOIN_LINE_BYTES_MAX: number = 64 * KIB
/** What the far login may print before the first answer: a greeting in a shell's start-up file. */
export const JOIN_NOISE_BYTES_MAX: number = 64 * KIB
/** The first answer of the far side: somebody may have to type a password or look up a fingerprint first. */
export const JOIN_LOGIN_MS: number = 300_000
/** Each further answer: keys are made, names looked up, files written. */
export const JOIN_ANSWER_MS: number = 60_000
/** The far side waits so long for the next word, and then undoes what it did. Longer than JOIN_ANSWER_MS. */
export const JOIN_NEXT_MS: number = 90_000
/** Names that a host is looked up by: host name, full name, migration_host. */
export const JOIN_NAMES_MAX: number = 8
/** Addresses of a host's interfaces that are looked at. */
export const JOIN_ADDRESSES_MAX: number = 256
/** Lines that one side says of what it did or would do. */
export const JOIN_LINES_MAX: number = 32
/** One such line: a path, a few addresses, a reason. */
export const JOIN_LINE_CHARACTERS_MAX: number = 600
/** Lines about names that were left out. */
export const JOIN_NOTES_MAX: number = 8
/** A reason of the far side's no, which becomes part of the one line that an error is. */
export const JOIN_MESSAGE_CHARACTERS_MAX: number = 2000
/** The last of what the far login or ssh said on standard error, in such a line. */
export const JOIN_STDERR_CHARACTERS_MAX: number = 600
/** The far command ends with its input; ssh is killed after that time. */
export const JOIN_CLOSE_MS: number = 5_000
/** What `ssh -G` prints: the administrator's own settings for a host, some 5 KiB. */
export const SSH_SETTINGS_BYTES_MAX: number = 1 * MIB
/** Host keys of this host's sshd that are looked at; it has three to five. */
export const HOST_KEYS_MAX: number = 16
/** The file authorized_keys of the login: a thousand peers have 300 KiB. */
export const AUTHORIZED_KEYS_BYTES_MAX: number = 1 * MIB
/** One run of ssh-keygen, sshd -T, hostname or a script that writes one small file. */
export const JOIN_COMMAND_MS: number = 15_000
/** One look-up of a name: a resolver asks several servers for some seconds each. */
export const NAME_LOOKUP_MS: number = 8_000

/** What `swam peer test` sends, each way: a second of a good link. A peer cannot ask for more. */
export const LINK_TEST_BYTES_MAX: number = 64 * MIB
/** Steps of tests that one peer may ask for in a minute, two each: what it can make this host send has a bound. */
export const LINK_TEST_STEPS_MAX: number = 12
/** The minute in which these steps are counted. */
export const LINK_TEST_STEPS_MS: number = 60_000
/** Calls of which the shortest is the round trip. */
export const LINK_TEST_CALLS_MAX: number = 5
/** One frame of that test: small enough that calls do not wait behind it. */
export const LINK_TEST_FRAME_BYTES: number = 256 * KIB
/** It sends so long at most, each way: a slow link is measured with less. */
export const LINK_TEST_SEND_MS: number = 3_000
/** One step of it, on a link that is far slower than it was; so long a test that was left bars the next one, twice. */
export const LINK_TEST_MS: number = 15_000

/** One program that the doctor runs. */
export const DOCTOR_COMMAND_MS: number = 10_000
/** One question of the doctor to the daemon, which asks all its peers and they their resolvers. */
export const DOCTOR_CALL_MS: number = 20_000
/** What `swam doctor --json` of a far host may print. */
export const DOCTOR_REPORT_BYTES_MAX: number = 1 * MIB
/** Findings in such a report; a host with everything wrong has a few for each peer. */
export const DOCTOR_FINDINGS_MAX: number = 1000
/** Each text of a finding: a path or two, a command. */
export const DOCTOR_TEXT_CHARACTERS_MAX: number = 2000
/** A name that a peer says or asks for: the longest in DNS. */
export const ABOUT_NAME_CHARACTERS_MAX: number = 255
/** The release that a peer says it has. */
export const ABOUT_RELEASE_CHARACTERS_MAX: number = 64
/** The answer of this host's own sshd: its first line. */
export const DOCTOR_SSHD_MS: number = 5_000
/** Running guests whose cap on migrations is looked at. Each is a virsh of 30 ms. */
export const DOCTOR_GUESTS_MAX: number = 100
/** Disks that one finding names, and that have one of their own; of further ones it says how many. */
export const DOCTOR_DISKS_NAMED_MAX: number = 8
/** After a join, until each daemon has its new peer; then the doctor looks. */
export const JOIN_SETTLE_MS: number = 6_000
/** How often the daemon is asked for that. */
export const JOIN_ASK_MS: number = 250
/** Findings of each doctor after a join; more are in `swam doctor`. */
export const JOIN_FINDINGS_MAX: number = 40
/** How far two clocks may be apart before that is worth a line. */
export const DOCTOR_CLOCK_MS: number = 5_000
/** Free bytes below which a place for images or state is worth a line. */
export const DOCTOR_FREE_BYTES_MIN: number = GIB

// ---- Frames and disk messages ----------------------------------------------------------------------------------

/** A frame's payload: 1 MiB of data and the fields around it. Checked before anything is allocated. */
export const FRAME_PAYLOAD_BYTES_MAX: number = MIB + 4 * KIB
/** Chunks in one DESCRIBE: a run of 16 MiB in chunks of the smallest size, and some. */
export const DESCRIBE_CHUNKS_MAX: number = 1100
/** Uncompressed bytes in one LITERAL, and bytes in one READ. */
export const LITERAL_BYTES_MAX: number = 1 * MIB
/** Chunks in one LITERAL. */
export const LITERAL_CHUNKS_MAX: number = 1024
/** Runs of chunk numbers in one WANT, ASK or APPLIED: 64 KiB of them. */
export const SEQ_RUNS_MAX: number = 4096
/** Runs in one SURVEY: 16 MiB of single blocks of 4 KiB, every other one zero, and some. */
export const SURVEY_SEGMENTS_MAX: number = 8192
/** Chunks in one SURVEY: 256 KiB of digests. */
export const SURVEY_CHUNKS_MAX: number = 8192
/** Blocks of 4 KiB that a chunk lies in: the longest one may begin and end inside of a block. */
export const CHUNK_BLOCKS_MAX: number = 65
/** Chunks in one HINTS, of some 550 bytes at most: a quarter of a MiB. */
export const HINTS_CHUNKS_MAX: number = 512
/** Chunks in one PARTS: 72 KiB of them. */
export const PARTS_CHUNKS_MAX: number = 4096
/** Chunks in one SKETCHES: 135 KiB of them at most, some 20 as a rule. */
export const SKETCHES_CHUNKS_MAX: number = 32
/** Name of an NBD export, and the text of a failure, in a disk message: NBD's own ceiling. */
export const EXPORT_NAME_BYTES_MAX: number = 4096

// ---- Chunks and compression ------------------------------------------------------------------------------------

/** The shortest chunk but for the last of a run. Where chunks are cut is part of the protocol. */
export const CHUNK_BYTES_MIN: number = 16 * KIB
/** The longest chunk: what is looked for, compared and written at once. */
export const CHUNK_BYTES_MAX: number = 256 * KIB
/** Bytes handed to a worker at once. */
export const DESCRIBE_BYTES_MAX: number = 16 * MIB
/** Worker threads that cut and digest: the daemon is a guest on its host. */
export const DESCRIBE_WORKERS_MAX: number = 4
/** Jobs under way in one worker: one that is worked on, one that waits. */
export const DESCRIBE_JOBS_MAX: number = 2
/** One decompressed literal or group of literals. Checked before it is decompressed, and again by zlib. */
export const ZSTD_OUTPUT_BYTES_MAX: number = 16 * MIB
/** log2 of the largest window that a zstd frame of a disk may ask for: 8 MiB; level 3 uses up to 2 MiB. */
export const ZSTD_WINDOW_LOG_MAX: number = 23
/** The same for a stream of literals, which lives as long as its disk's session: 2 MiB, what level 3 uses. */
export const LITERAL_STREAM_WINDOW_LOG_MAX: number = 21
/** The same between two ends that have FEATURE_WIDE: 4 MiB. */
export const LITERAL_WIDE_WINDOW_LOG_MAX: number = 22
/** The largest piece of shared memory; the pool of them is bounded by `limits.windowMiB`. */
export const SLAB_BYTES_MAX: number = 16 * MIB
/** Shared memory that is kept for the next migration when nothing is under way. */
export const SLAB_IDLE_BYTES_MAX: number = 32 * MIB

// ---- Engine: the sender ----------------------------------------------------------------------------------------

/** Writes are put in order within this many bytes before they are cut. The mirror's disorder spans 5 MiB. */
export const STAGE_BYTES_MAX: number = 16 * MIB
/** Pieces in the stage: a guest that writes single sectors all over. */
export const STAGE_PIECES_MAX: number = 16_384
/** What rests in the stage this long is sent without waiting for neighbours. */
export const STAGE_IDLE_MS: number = 40
/** A hot part of a disk is held back until it has not been written for so long; QEMU mirrors what is dirty every 100 ms. */
export const HOT_REST_MS: number = 500
/** Parts of 64 KiB of one disk of which it is known when they were written last. */
export const HOT_UNITS_MAX: number = 65_536
/** What is held back of one disk may take so long to send by the link's rate: when the guest is paused it must. */
export const HELD_BACK_MS: number = 50
/** And no more than that: the stage has room for the rest. */
export const HELD_BACK_BYTES_MAX: number = 4 * MIB
/** Bytes that are described as one run. */
export const RUN_BYTES_MAX: number = 16 * MIB
/** The same of what a FLUSH waits for: what was described first is on its way while the rest is. */
export const HURRIED_RUN_BYTES_MAX: number = 2 * MIB
/** Runs of one disk with the workers at once. */
export const DESCRIBING_RUNS_MAX: number = 2
/** What each disk may have acknowledged and not settled, however much others have: none waits for one that hangs. */
export const WINDOW_SHARE_BYTES_MIN: number = 2 * MIB
/** Runs of one disk that leave the stage in one turn of the event loop. */
export const EMITTED_RUNS_MAX: number = 64
/** Chunks of one disk that are acknowledged to the guest and not settled yet: about 200 bytes here, 1 KiB at the far side. */
export const SENDER_RECORDS_MAX: number = 16_384
/** Literals of one disk that are being compressed or sent. */
export const LITERALS_IN_FLIGHT_MAX: number = 4
/** Chunks whose blocks are digested in one turn of the event loop: some 4 ms. */
export const HINTS_TURN_CHUNKS_MAX: number = 64
/** A run up to this length is sent along with its description: in the end that is a round trip less of downtime. */
export const EAGER_RUN_BYTES_MAX: number = 256 * KIB
/** What may be on its way while that is done outside of a FLUSH, but for what is rewritten and spared nothing lately. */
export const EAGER_OUTSTANDING_BYTES_MAX: number = 512 * KIB
/** How often while a disk is copied: what a host or a QEMU that dies loses of it. More often would slow the copying down. */
export const FLUSH_BULK_MS: number = 30_000
/** How often a receiver flushes its disk while the guest goes on, so that the last FLUSH finds little. */
export const FLUSH_AHEAD_MS: number = 500
/** What a guest dirties is measured over so long. */
export const DIRTY_RATE_MS: number = 20_000
/** A migration does not converge when a write of QEMU has waited at every look for so long. */
export const DIVERGES_MS: number = 10_000
/** Parts of a disk of which a sender remembers that it sent them: 16 MiB of bits, for 8 TiB parts of 64 KiB; for more larger ones. */
export const SENT_PARTS_MAX: number = 2 ** 27
/** What all senders of a daemon remember of places that are rewritten, as bytes, so that only what changed goes, and unasked. */
export const SENT_VERSIONS_BYTES_MAX: number = 64 * MIB
/** What one disk's sender may have sent unasked, FLUSH or not; its receiver holds it and takes no more. */
export const EARLY_BYTES_MAX: number = 8 * MIB
/** So many applied bytes tell, by weight, how much of what is undetermined will have to be sent, and so how long it drains. */
export const LITERAL_SHARE_BYTES: number = 8 * MIB
/** With `throttle`, what of a disk that is copied may be acknowledged and not settled: so much of the link's rate, in milliseconds. */
export const THROTTLE_MS: number = 100
/** And so much on any link: four of the mirror's 64 KiB. */
export const THROTTLE_BYTES_MIN: number = 256 * KIB
/** Acknowledged bytes whose fate the far side has not told yet, on a slow link: a stage full, and its answers on the way. */
export const UNDETERMINED_BYTES_MIN: number = 24 * MIB
/** The same on any link: they may all turn out to be wanted, and must then drain. */
export const UNDETERMINED_BYTES_MAX: number = 96 * MIB

// ---- Engine: the receiver --------------------------------------------------------------------------------------

/** Chunks that are looked for at once: enough to keep the disk busy, few enough to keep memory small. */
export const RESOLVING_CHUNKS_MAX: number = 24
/** Chunks of one disk that are described and not applied: twice what an honest sender has; about 1 KiB of bookkeeping each. */
export const RECEIVER_TASKS_MAX: number = 2 * SENDER_RECORDS_MAX
/** The same over all disks of one migration: about a KiB of bookkeeping each. */
export const MIGRATION_TASKS_MAX: number = 262_144
/** Bytes of all disks of one migration that came unasked and wait for their turn: more than an honest stage holds. */
export const MIGRATION_EAGER_BYTES_MAX: number = 256 * MIB
/** READs of one disk that wait; one is answered at a time. QEMU has 16 requests in flight, an NBD server of ours takes 256. */
export const RECEIVER_READS_MAX: number = 1024
/** FLUSHes of one disk that wait. QEMU has one. */
export const RECEIVER_FLUSHES_MAX: number = 1024
/** Pending zero ranges before they are settled early. */
export const PENDING_ZEROES_MAX: number = 65_536
/** Known zero ranges that are remembered; forgetting them costs reads, never bytes. */
export const KNOWN_ZEROES_MAX: number = 65_536
/** Pending zero ranges that are settled at once; between them the event loop gets its turn. */
export const SETTLING_ZEROES_MAX: number = 32
/** Extents of the target that are looked at in one turn of the event loop. */
export const SCANNED_EXTENTS_MAX: number = 4096
/** Chunks that a session remembers having delivered, some 64 bytes each. */
export const SESSION_ENTRIES_MAX: number = (64 * MIB) / 64
/** Chunks whose blocks are looked for at once. */
export const FINDING_CHUNKS_MAX: number = 8
/** What of the old content of chunks that wait for that a disk keeps: the last of 50 ms at 2.5 Gbit/s. Beyond it is read again. */
export const OLD_KEPT_BYTES_MAX: number = 16 * MIB
/** Chunks before a FLUSH that are not asked for block by block: some 8 MiB, on most links about the round trip that they would wait. */
export const HURRIED_CHUNKS_MAX: number = 128
/** Where blocks lie that a session delivered: 20 bytes each, so 3 GiB of them. */
export const SESSION_BLOCKS_BYTES_MAX: number = 16 * MIB
/** Waiting for a chunk that another session asked for, at most: what it takes on 10 Mbit/s that ten guests share. */
export const ARRIVAL_WAIT_MS: number = 10_000
/** The same while nothing comes at that session: several literals' time on such a link, and what `virsh suspend` may take longer. */
export const ARRIVAL_SILENCE_MS: number = 3_000
/** One read of what another session has delivered: behind 64 MiB of writes on a slow disk. A disk that hangs is given up. */
export const ARRIVAL_READ_MS: number = 2_000
/** Chunks written but for a block shared with a neighbour, copied for other sessions: some 250, over the whole daemon. */
export const ARRIVAL_KEPT_BYTES_MAX: number = 16 * MIB
/** Other sessions that are tried for one chunk or block: each is a read. */
export const ARRIVAL_PLACES_MAX: number = 4
/** Images in which the same offset is guessed at: each guess is a read. */
export const GUESS_IMAGES_MAX: number = 4

// ---- Catalog ---------------------------------------------------------------------------------------------------

/** Images that are known at once by their maps and handprints, over all shared directories. */
export const KNOWN_IMAGES_MAX: number = 4096
/** Links to images of failed migrations (swam salvage) on one host, whatever their size; each is an image that is known. */
export const SALVAGE_IMAGES_MAX: number = 256
/** The part of a disk's name that stands in the name of such a link. */
export const SALVAGE_TARGET_CHARACTERS_MAX: number = 64
/** An image that has its other name still so long after its migration failed is taken away by nobody: the link goes. */
export const SALVAGE_SETTLE_MS: number = 600_000
/** The hook's wait, at an announcement, for old salvage to be removed. */
export const SALVAGE_SWEEP_WAIT_MS: number = 1_000
/** How long salvage may be kept by the config, in days. */
export const SALVAGE_DAYS_MAX: number = 366
/** Images that are open at once, while migrations come in: those that were asked for most, then the first by path. */
export const SHARED_IMAGES_MAX: number = 256
/** Samples of one image's handprint, 8 bytes each: one of 256 chunks, so 1 TiB of chunks of 64 KiB. Of more the smallest. */
export const HANDPRINT_SAMPLES_MAX: number = 65_536
/** Samples of all images' handprints in memory, some 150 bytes each: 4 TiB of data, or 64 of each image. Of more data they are thinner. */
export const HANDPRINTS_SAMPLES_MAX: number = 262_144
/** An image that nobody wrote to for so long is at rest: a map of it will hold. */
export const IMAGE_REST_MS: number = 10_000
/** A running guest's image is scanned again after this time; its old map is a good guess meanwhile. */
export const IMAGE_RESCAN_MS: number = 6 * 3_600_000
/** Free bytes of the state's file system below which no map is made: the history lies there too. The doctor says it (space-state). */
export const CATALOG_FREE_BYTES_MIN: number = GIB
/** Chunks of a scan until that is looked at again: some 10 MB of map. */
export const CATALOG_FREE_CHUNKS_MAX: number = 65_536
/** How long the config may keep the map of an image that nobody changed or used, in days: ten years. */
export const CATALOG_DAYS_MAX: number = 3_660
/** Maps that are kept, those of images that are not there now included; the first to go are those that have to go for bytes. */
export const CATALOG_MAPS_MAX: number = 2 * KNOWN_IMAGES_MAX
/** So much later an image must have been changed or used than one with a map, to take its room: else guests that run take turns. */
export const CATALOG_TURN_MS: number = 86_400_000
/** How exactly it is kept when an image was there last. */
export const CATALOG_SEEN_MS: number = 3_600_000
/** The file in which that stands: some 100 bytes for each of CATALOG_MAPS_MAX. */
export const CATALOG_LEDGER_BYTES_MAX: number = 1 * MIB
/** From one round of the catalog in the background to the next; listing images costs next to nothing. */
export const CATALOG_TEND_MS: number = 600_000
/** From the daemon's start to the first round: a host that boots has other things to read. */
export const CATALOG_FIRST_TEND_MS: number = 60_000
/** From a sample of an image that found no room to thinking over which images shall: digests come by the thousand. */
export const CATALOG_PLAN_MS: number = 250
/** Chunks of an image's map that are read or written at once: 17 bytes each in the file, an object each while they are inserted. */
export const MAP_PIECE_CHUNKS_MAX: number = 8_192
/** Blocks of 4 KiB in one run of an image's map, 8 bytes each: 16 KiB. */
export const MAP_RUN_BLOCKS_MAX: number = 2_048
/** Numbers of images in the index, which are never given twice: 16 bits of an entry; when they are used up the index is made anew. */
export const IMAGE_NUMBER_MAX: number = 0xffff
/** Places of one digest that are kept: content that lies everywhere needs no more places to read it from. */
export const CHUNK_LOCATIONS_MAX: number = 4
/** One read of an image. */
export const IMAGE_READ_BYTES_MAX: number = 16 * MIB
/** One read of a scan; two are held. */
export const SCAN_PIECE_BYTES: number = 4 * MIB
/** Standard output of one `qemu-img map`: some 150,000 extents. Beyond it the whole image is read. */
export const IMAGE_MAP_BYTES_MAX: number = 16 * MIB
/** One `qemu-img map`, which seeks through the whole file. */
export const IMAGE_MAP_DEADLINE_MS: number = 10_000

/** Exports of qcow2 images that are open at once, while migrations come in: each is a process of QEMU of some 30 MiB. */
export const STOCK_EXPORTS_MAX: number = 16
/** Guests whose XML is asked for, for the formats of images: one call of virsh each, in the background. */
export const LISTED_GUESTS_MAX: number = 1024
/** Files of one backing chain: longer ones are snapshots that somebody forgot to merge, or a circle. */
export const CHAIN_FILES_MAX: number = 64
/** From the start of QEMU's export of a qcow2 to its socket, and from there to its greeting: some 50 ms, seconds on a busy host. */
export const EXPORT_START_MS: number = 15_000
/** How often that socket is tried. */
export const EXPORT_ASK_MS: number = 10
/** How long the end of an export is waited for when its connection broke, for its reason. */
export const EXPORT_END_MS: number = 1_000
/** One `qemu-img check` of an image that is analyzed: it reads all tables, some 130 MB of a TiB. */
export const QEMU_CHECK_DEADLINE_MS: number = 120_000
/** What `qemu-img info` may print of one file: its bitmaps and key slots are some KiB. */
export const QEMU_INFO_BYTES_MAX: number = 1 * MIB

// ---- Analyze ---------------------------------------------------------------------------------------------------

/** Data of the analyzed disk on its way through the engine: what swamd has by default (`limits.windowMiB`). */
export const ANALYZE_WINDOW_BYTES_MAX: number = 256 * MIB
/** The index of the images that the far side is supposed to have: what swamd has by default (`limits.indexMiB`). */
export const ANALYZE_INDEX_BYTES_MAX: number = 256 * MIB
/** Pieces of a MiB of the image that are being read at once: as deep as a mirror job's reads need to keep a disk busy. */
export const ANALYZE_READS_MAX: number = 8
/** Images that the far side is supposed to have, those in directories included: as many as swamd knows. */
export const ANALYZE_IMAGES_MAX: number = SHARED_IMAGES_MAX
/** Exports of qcow2 images at once: each is a process of QEMU of some 30 MiB. */
export const ANALYZE_EXPORTS_MAX: number = 32
/** How long SHA-256 is measured, to compare the engine with it: within some percent on a quiet host. */
export const ANALYZE_SHA256_MS: number = 500

// ---- Estimate --------------------------------------------------------------------------------------------------

/** One estimate, at either end: an image without a map is read whole, which takes minutes for 100 GiB. */
export const ESTIMATE_MS: number = 600_000
/** One call of an estimate. The first one waits for maps to be read at the far side. */
export const ESTIMATE_CALL_MS: number = 20_000
/** How long the far side waits for its images to be known: those with maps are in seconds, those without are not waited for. */
export const ESTIMATE_SCAN_WAIT_MS: number = 5_000
/** How often it looks meanwhile. */
export const ESTIMATE_SCAN_ASK_MS: number = 50
/** Estimates that are answered at once, over all peers, of each of which it is one. */
export const ESTIMATES_MAX: number = 4
/** Estimates that one peer may begin in a minute, as many as tests of the link: each looks for images that changed. */
export const ESTIMATE_STARTS_MAX: number = 6
/** The minute in which these are counted. */
export const ESTIMATE_STARTS_MS: number = 60_000
/** Chunks that one call asks about, 17 bytes each: some 90 KiB as JSON, and some ms of look-ups. */
export const ESTIMATE_CALL_CHUNKS_MAX: number = 4096
/** Blocks that one call asks about, 8 bytes each and 7 for each run of them. */
export const ESTIMATE_CALL_BLOCKS_MAX: number = 8192
/** Calls of one estimate that are not answered yet: the link's round trips are not waited for one by one. */
export const ESTIMATE_CALLS_AT_ONCE_MAX: number = 2
/** Chunks that one estimate may ask about, 64 GiB of data and 24 MB on the link; of larger disks not all are asked about. */
export const ESTIMATE_CHUNKS_MAX: number = 1024 * 1024
/** Blocks that one estimate may ask about: of each of eight disks those of the chunks below, of each of more disks fewer. */
export const ESTIMATE_BLOCKS_MAX: number = 4 * 1024 * 1024
/** Chunks of a disk that the far side lacks and that are looked at block by block, spread over it: half a GiB, some 4 MiB of hints. */
export const ESTIMATE_SAMPLE_CHUNKS_MAX: number = 8192
/** Bytes of a disk that are compressed to see how much that gives: half a second. Of more than eight disks less each. */
export const ESTIMATE_SAMPLE_BYTES_MAX: number = 64 * MIB
/** Parts of a disk's map between the thread that reads it and the one that asks about it, some 700 KiB each. */
export const ESTIMATE_PIECES_MAX: number = 4
/** How often in a row a qcow2 is exported anew because it could not be read: its guest writes the tables meanwhile. Some 100 ms each. */
export const ESTIMATE_EXPORTS_MAX: number = 3

// ---- Proof -----------------------------------------------------------------------------------------------------

/** Pages of digests (4 KiB, of 8 MiB of disk each) that one disk's map keeps in memory; the others lie in its file. */
export const PROOF_PAGES_MAX: number = 256
/** Changes of one disk's map that wait for its file: more, and what is described waits, too. */
export const PROOF_CHANGES_MAX: number = 16_384
/** Runs of leaves in one PROVE or PROVED, and in what either end keeps of a disk: beyond it small gaps count as part of them. */
export const PROOF_RUNS_MAX: number = 16_384
/** Leaves of all disks of the daemon that are put together of pieces, or being digested; what finds no room is read back. */
export const PROOF_ASSEMBLED_BYTES_MAX: number = 32 * MIB
/** Bytes of one read of a proof: sixteen leaves, so that a disk with a moving head reads more than it seeks. */
export const PROOF_READ_BYTES_MAX: number = 1 * MIB
/** Reads of one disk in flight while a FLUSH waits for them; in the background there is one. */
export const PROOF_READS_MAX: number = 8
/** The least rest between two reads in the background, which rest as long as they took: half of the disk is for others. */
export const PROOF_REST_MS: number = 5
/** How soon is looked again when all that is to be read back is being written. */
export const PROOF_BUSY_MS: number = 50
/** Head of a record: who, when, where from. Its texts are a guest's name and a path of full length, in JSON. */
export const PROOF_HEAD_BYTES: number = 32 * KIB
/** Records that a host keeps, one a disk of a guest; the oldest go. */
export const PROOF_RECORDS_MAX: number = 1024
/** Bytes of all records as they lie on disk, 0.05% of the data of the guests; the oldest go. */
export const PROOF_RECORDS_BYTES_MAX: number = 8 * GIB
/** How long a record is kept: after a month at work no disk is what it was. */
export const PROOF_RECORD_AGE_MS: number = 30 * 24 * 3_600_000
/** Places of differences that `swam verify` names; the others it counts. */
export const PROOF_DIFFERENCES_MAX: number = 16

// ---- RAM and other streams -------------------------------------------------------------------------------------

/** Blocks of memory of one guest that are told apart: a machine has some ten, and one for each module of memory. */
export const RAM_BLOCKS_MAX: number = 1024
/** How long the last of a guest's memory is taken slowly in all, so that less is left when it is paused. */
export const RAM_HELD_MS: number = 10_000
/** On a fast link: for so long after a FLUSH was answered it still is, while libvirt sees to the disks of the paused guest. */
export const RAM_AFTER_FLUSH_MS: number = 100
/** Raw bytes of one block of a passed-through stream. Checked before it is decompressed, and again by zlib. */
export const RAM_BLOCK_BYTES_MAX: number = 128 * KIB
/** log2 of the largest window that a zstd frame of a stream may ask for: 256 KiB, more than a block has. */
export const RAM_ZSTD_WINDOW_LOG_MAX: number = 18

// ---- NBD -------------------------------------------------------------------------------------------------------

/** Payload of one READ or WRITE: what a client may assume when no block sizes were negotiated. */
export const NBD_PAYLOAD_BYTES_MAX: number = 32 * MIB
/** Data of one option: a name and the queries of one metadata request fit many times over. */
export const NBD_OPTION_BYTES_MAX: number = 64 * KIB
/** Data of one option reply: a name and a description of full length, and the fields around them. */
export const NBD_OPTION_REPLY_BYTES_MAX: number = 64 * KIB
/** Extents of one BLOCK_STATUS reply (nbdkit sends up to 2^20 of them). */
export const NBD_STATUS_EXTENTS_MAX: number = 1024 * 1024
/** An error chunk: its fields and a message of full length (4 KiB), twice over for fields not known today. */
export const NBD_ERROR_CHUNK_BYTES_MAX: number = 8 * KIB
/** WRITE_ZEROES, TRIM and BLOCK_STATUS carry a 32-bit length; the client asks for at most this much at a time. */
export const NBD_RANGE_BYTES_MAX: number = GIB
/** Options that one client may send before it chooses an export. */
export const NBD_OPTIONS_MAX: number = 1024
/** Server: requests handed to the device and not answered yet. Enough for QEMU's 16, nbdcopy's 64 and then some. */
export const NBD_REQUESTS_MAX: number = 256
/** Server: bytes of WRITE payloads and READ replies held at a time; one payload more may be arriving. */
export const NBD_IN_FLIGHT_BYTES_MAX: number = 2 * NBD_PAYLOAD_BYTES_MAX
/** Server: extents of one BLOCK_STATUS reply (512 KiB); a client asks again for the rest. */
export const NBD_REPLY_EXTENTS_MAX: number = 65_536
/** Waiting for QEMU, as client or as the new QEMU's server, all in all, until an export is chosen: a few round trips on loopback. */
export const NBD_HANDSHAKE_MS: number = 15_000
/** Client: requests that are sent and not answered; more wait here. What QEMU's server takes from one connection at once. */
export const NBD_CLIENT_REQUESTS_MAX: number = 256
/** Client: bytes of WRITE payloads and READ replies of these; a single larger request goes alone. */
export const NBD_CLIENT_IN_FLIGHT_BYTES_MAX: number = 2 * NBD_PAYLOAD_BYTES_MAX
/** Client: separate pieces that the data of one READ may arrive in at a time; neighbours count as one. */
export const NBD_READ_PIECES_MAX: number = 1024
/** Exports that the client accepts in one list. */
export const NBD_EXPORTS_MAX: number = 10_000
