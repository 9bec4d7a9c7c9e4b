/** Which targets share a process. A group gets one share of the time, so those that find much stand in small groups. */
import type { FuzzTarget } from './target.ts'
import { bundleTarget } from './targets/bundle.ts'
import { controlAnswer, controlRequest, params } from './targets/control.ts'
import { doctorReport, hostSettings, peerAbout } from './targets/doctor.ts'
import { diskReceiver } from './targets/engine-receiver.ts'
import { diskSender } from './targets/engine-sender.ts'
import { estimate } from './targets/estimate.ts'
import { config, domainXml, history, procTables, running, toolOutput } from './targets/host.ts'
import { imageMap } from './targets/image-map.ts'
import { incomingMark } from './targets/incoming-mark.ts'
import { authorizedKeys, configText, joinFacts, joinLines } from './targets/join.ts'
import { leafRecord } from './targets/leaf-record.ts'
import { linkTest } from './targets/link-test.ts'
import { peerListener } from './targets/listener.ts'
import { nbdDial, nbdGreeting, nbdReplies } from './targets/nbd-client.ts'
import { nbdOptions, nbdRequests, nbdServe } from './targets/nbd-server.ts'
import { diskMessages, peerFrames, peerHello, streamBlocks } from './targets/peer.ts'

export const GROUPS: Readonly<Record<string, readonly FuzzTarget[]>> = {
  'nbd-server': [nbdOptions, nbdRequests, nbdServe, configText, authorizedKeys, hostSettings],
  'nbd-client': [nbdGreeting, nbdReplies, nbdDial, joinFacts, doctorReport, running],
  'peer-frames': [peerHello, peerFrames, diskMessages, streamBlocks, joinLines, peerAbout, incomingMark],
  texts: [domainXml, config, history, procTables, toolOutput, params, imageMap, leafRecord],
  engine: [diskReceiver, diskSender],
  sockets: [bundleTarget, peerListener, controlRequest, controlAnswer, linkTest, estimate],
}
