/**
 * What a unit with Type=notify hears from its daemon: READY=1 and STOPPING=1. Node has no datagram sockets of the unix kind,
 * so systemd's own systemd-notify says it (the unit needs NotifyAccess=all). Without systemd nothing is said.
 */
import { NOTIFY_DEADLINE_MS } from '../core/limits.ts'
import { runCommand } from './command.ts'

/** `socket` is NOTIFY_SOCKET as systemd set it; without it nothing happens. Throws as runCommand does. */
export async function notifySystemd(
  socket: string | undefined,
  state: 'READY=1' | 'STOPPING=1',
): Promise<void> {
  if (socket === undefined || socket === '') return
  await runCommand(['env', `NOTIFY_SOCKET=${socket}`, 'systemd-notify', state], {
    deadlineMs: NOTIFY_DEADLINE_MS,
    outputBytesMax: 4096,
  })
}
