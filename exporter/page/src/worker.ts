// SPDX-License-Identifier: Apache-2.0

// The shared worker of all tabs: it holds the one stream of this browser while any tab is
// looked at. A tab that comes later gets what the stream said before, so the stream need not
// begin again.

import { Hub, type Viewer } from "./hub";

interface WorkerScope {
  onconnect: ((event: MessageEvent) => void) | null;
}

const hub = new Hub();

(self as unknown as WorkerScope).onconnect = (event) => {
  const port = event.ports[0]!;
  const viewer: Viewer = (message) => port.postMessage(message);
  port.onmessage = ({ data }) => {
    switch (data.kind) {
      case "look":
        hub.look(viewer, String(data.address));
        break;
      case "away":
        hub.away(viewer);
        break;
    }
  };
};

setInterval(() => hub.sweep(), 5_000);
