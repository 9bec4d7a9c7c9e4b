/** How the limits depend on each other: where one of them moves, another may have to. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  ARRIVAL_KEPT_BYTES_MAX,
  ARRIVAL_READ_MS,
  ARRIVAL_SILENCE_MS,
  ARRIVAL_WAIT_MS,
  BREAK_MS,
  BUNDLES_MAX,
  CHUNK_BLOCKS_MAX,
  CHUNK_BYTES_MAX,
  CHUNK_BYTES_MIN,
  COMMAND_OUTPUT_BYTES_MAX,
  CONFIG_TEXT_BYTES_MAX,
  DESCRIBE_BYTES_MAX,
  DESCRIBE_CHUNKS_MAX,
  DOMAIN_XML_BYTES_MAX,
  ESTIMATE_BLOCKS_MAX,
  ESTIMATE_CALL_BLOCKS_MAX,
  ESTIMATE_CALL_CHUNKS_MAX,
  ESTIMATE_CALL_MS,
  ESTIMATE_SCAN_WAIT_MS,
  FRAME_PAYLOAD_BYTES_MAX,
  GUEST_DISKS_MAX,
  HOOK_DEADLINE_MS_MAX,
  HOOK_LATER_DEADLINE_MS,
  HOOK_REQUEST_BYTES_MAX,
  IMAGE_BYTES_MAX,
  JOIN_ANSWER_MS,
  JOIN_NEXT_MS,
  LITERAL_BYTES_MAX,
  MIGRATION_TASKS_MAX,
  MIGRATIONS_MAX,
  NFT_DEADLINE_MS,
  OUTCOME_ASK_MS,
  OUTCOME_ASKS_MAX,
  OUTCOME_HEARD_MS,
  OUTCOME_MS,
  PEER_BUNDLES_MAX,
  PEER_CONTROL_BUNDLES_MAX,
  PEER_MIGRATIONS_MAX,
  PEERS_MAX,
  PING_INTERVAL_MS,
  RECEIVER_TASKS_MAX,
  REDIRECT_REFRESH_MS,
  REDIRECT_TTL_MS,
  RESUME_MS,
  RESUME_TRY_MS_MAX,
  RPC_BYTES_MAX,
  RUN_BYTES_MAX,
  SENDER_RECORDS_MAX,
  SILENCE_MS_MAX,
  SLAB_BYTES_MAX,
  STREAM_CHUNK_BYTES_MAX,
  VIRSH_DEADLINE_MS,
  WATCHDOG_BEAT_MS,
  WATCHDOG_STALL_MS,
  WATCHDOG_TURN_MS,
} from '../../../lib/core/limits.ts'
import { BLOCK_BYTES } from '../../../lib/core/units.ts'

test('limits that depend on each other fit', () => {
  assert(OUTCOME_MS > OUTCOME_ASKS_MAX * OUTCOME_ASK_MS, 'on a quiet host libvirt is asked all its times')
  assert(
    OUTCOME_HEARD_MS > OUTCOME_MS + VIRSH_DEADLINE_MS,
    'the far side is waited for as long as it may ask',
  )
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
  assert(
    WATCHDOG_STALL_MS + WATCHDOG_TURN_MS < 10_000,
    'a daemon that hangs must be as good as absent within 10 s',
  )
  assert(WATCHDOG_BEAT_MS * 2 <= WATCHDOG_TURN_MS, 'two beats between two looks of the watchdog')
  assert(VIRSH_DEADLINE_MS * 2 < 20_000, 'two virsh calls in a row must fit the default hookDeadlineMs')
  assert(HOOK_LATER_DEADLINE_MS < HOOK_DEADLINE_MS_MAX)
  assert(IMAGE_BYTES_MAX <= Number.MAX_SAFE_INTEGER && IMAGE_BYTES_MAX % BLOCK_BYTES === 0)
  assert(SILENCE_MS_MAX >= 3 * PING_INTERVAL_MS, 'three questions fit into the silence that ends a bundle')
  assert(
    BREAK_MS + RESUME_MS < 30_000,
    'a link that stays down is given up before libvirt gives up its own connection',
  )
  assert(RESUME_TRY_MS_MAX < RESUME_MS, 'there is time for more than one try')
  assert(SILENCE_MS_MAX < 30_000, 'a dead link is noticed before libvirt gives up its own connection')
  assert(FRAME_PAYLOAD_BYTES_MAX > LITERAL_BYTES_MAX, 'the largest literal fits into a frame')
  assert(FRAME_PAYLOAD_BYTES_MAX > RPC_BYTES_MAX && FRAME_PAYLOAD_BYTES_MAX > STREAM_CHUNK_BYTES_MAX)
  assert(DESCRIBE_CHUNKS_MAX * CHUNK_BYTES_MIN > RUN_BYTES_MAX, 'the longest run fits into one DESCRIBE')
  assert(DESCRIBE_BYTES_MAX >= RUN_BYTES_MAX && SLAB_BYTES_MAX >= RUN_BYTES_MAX, 'a run fits into one job')
  assert(RECEIVER_TASKS_MAX >= 2 * SENDER_RECORDS_MAX, 'an honest sender never reaches the ceiling of tasks')
  assert(
    PEER_BUNDLES_MAX >= 2 * PEER_MIGRATIONS_MAX + PEER_CONTROL_BUNDLES_MAX,
    'each migration has two bundles',
  )
  assert(BUNDLES_MAX >= 2 * MIGRATIONS_MAX + PEER_BUNDLES_MAX, 'one peer cannot take the room of others')
  assert(MIGRATION_TASKS_MAX >= 2 * RECEIVER_TASKS_MAX, 'one disk at its ceiling leaves room for others')
  assert(JOIN_NEXT_MS > JOIN_ANSWER_MS, 'the far side undoes only what nobody waits for any more')
  assert(
    ARRIVAL_SILENCE_MS < ARRIVAL_WAIT_MS,
    'what comes slowly is waited for longer than what does not come',
  )
  assert(
    ARRIVAL_READ_MS < ARRIVAL_SILENCE_MS,
    'a session that waits for a disk which hangs is no session that hangs',
  )
  assert(
    ARRIVAL_KEPT_BYTES_MAX >= 16 * CHUNK_BYTES_MAX,
    'the largest chunks of some sessions do not drive out each other',
  )
  assert(LITERAL_BYTES_MAX >= CHUNK_BYTES_MAX, 'the largest chunk fits into one LITERAL')
  const base64 = 4 / 3
  assert(ESTIMATE_CALL_CHUNKS_MAX * 17 * base64 < RPC_BYTES_MAX - 4096, 'a batch of chunks fits into a call')
  assert(ESTIMATE_CALL_BLOCKS_MAX * 15 * base64 < RPC_BYTES_MAX - 4096, 'a batch of blocks fits into a call')
  assert(ESTIMATE_CALL_BLOCKS_MAX >= 32 * CHUNK_BLOCKS_MAX, 'a group of chunks fits into one call')
  assert(
    ESTIMATE_BLOCKS_MAX >= GUEST_DISKS_MAX * 32 * CHUNK_BLOCKS_MAX,
    'of each disk of a guest a group of chunks can be looked at',
  )
  assert(ESTIMATE_SCAN_WAIT_MS * 2 < ESTIMATE_CALL_MS, 'whoever begins hears of it in time')
})
