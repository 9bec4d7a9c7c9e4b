/**
 * The program `swamd --config FILE`: reads the configuration, starts the daemon, ends it on SIGTERM or SIGINT, reads its
 * peers anew on SIGHUP. A failure that nobody expected ends the process: a redirect without a daemon expires by itself, a
 * confused daemon would not.
 * systemd, where it started us (NOTIFY_SOCKET), hears when the daemon listens and when it stops.
 */
import { DEFAULT_CONFIG_PATH, loadConfig } from '../config/load.ts'
import { ConfigError, errorText } from '../lib/core/errors.ts'
import { createLog } from '../lib/core/log.ts'
import { notifySystemd } from '../lib/host/notify.ts'
import { checkDirectories, Daemon } from './daemon.ts'

const EXIT_FAILED = 1
const EXIT_USAGE = 2
const EXIT_CONFIG = 6

function configPath(argv: readonly string[]): string {
  if (argv.length === 0) return DEFAULT_CONFIG_PATH
  const [option, path] = argv
  if (argv.length === 2 && option === '--config' && path !== undefined) return path
  process.stderr.write('usage: swamd [--config FILE]\n')
  process.exit(EXIT_USAGE)
}

async function main(): Promise<void> {
  const path = configPath(process.argv.slice(2))
  const config = await loadConfig(path)
  await checkDirectories(config)
  const log = createLog({ level: config.logLevel })
  const notifySocket = process.env['NOTIFY_SOCKET']
  const daemon = new Daemon(config, log, {
    notifySocket,
    readPeers: async () => (await loadConfig(path)).peers,
  })
  const tell = (state: 'READY=1' | 'STOPPING=1'): Promise<void> =>
    notifySystemd(notifySocket, state).catch((error: unknown) =>
      log.warn({ error, state }, 'systemd cannot be told'),
    )
  const fatal = (error: unknown): void => {
    log.error({ error }, 'swamd ends: an error that nobody handled')
    process.exit(EXIT_FAILED)
  }
  process.on('uncaughtException', fatal)
  process.on('unhandledRejection', fatal)
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      void tell('STOPPING=1')
      void daemon.close().then(
        () => process.exit(0),
        (error: unknown) => fatal(error),
      )
    })
  }
  process.on('SIGHUP', () => {
    daemon.reload().catch((error: unknown) => log.error({ error }, 'the config is wrong: the peers stay'))
  })
  await daemon.start()
  await tell('READY=1')
}

main().catch((error: unknown) => {
  process.stderr.write(`swamd: ${errorText(error)}\n`)
  process.exit(error instanceof ConfigError ? EXIT_CONFIG : EXIT_FAILED)
})
