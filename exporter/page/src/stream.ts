// SPDX-License-Identifier: Apache-2.0

import { Hub, sign, type Message } from "./hub";

/** Someone who looks at the stream. */
interface Eye {
  look(): void;
  away(): void;
}

/**
 * Follows the stream while this tab is looked at. What it says comes to hear, in order. The
 * tabs of a browser share one connection; a browser without shared workers has one for each
 * tab that is looked at.
 */
export function follow(worker: string, address: string, hear: (message: Message) => void): void {
  const eye = eyeOf(worker, address, hear);
  let looking = false;
  const change = () => {
    const now = document.visibilityState === "visible";
    if (now === looking) return;
    looking = now;
    if (now) eye.look();
    else eye.away();
  };
  document.addEventListener("visibilitychange", change);
  window.addEventListener("pagehide", () => {
    looking = false;
    eye.away();
  });
  window.addEventListener("pageshow", change);
  setInterval(() => looking && eye.look(), sign);
  change();
}

function eyeOf(worker: string, address: string, hear: (message: Message) => void): Eye {
  try {
    const { port } = new SharedWorker(worker, "nettally");
    port.onmessage = ({ data }) => hear(data as Message);
    return {
      look: () => port.postMessage({ kind: "look", address }),
      away: () => port.postMessage({ kind: "away" }),
    };
  } catch {
    const hub = new Hub();
    return { look: () => hub.look(hear, address), away: () => hub.away(hear) };
  }
}
