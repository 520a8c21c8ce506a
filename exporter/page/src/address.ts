// SPDX-License-Identifier: Apache-2.0

import { useEffect, useState } from "preact/hooks";

// The view and all that can be set in it are in the fragment of the address, so that it can be
// linked. A proxy needs no rule for it, and the server never sees it.

/** A view and its settings. */
export interface Address {
  view: string;
  of: string; // a container's id
  set: URLSearchParams;
}

export function read(): Address {
  const [, path = "", query = ""] = /^#?\/?([^?]*)\??(.*)$/s.exec(location.hash) ?? [];
  const [view = "", ...rest] = path.split("/");
  let of = rest.join("/");
  try {
    of = decodeURIComponent(of);
  } catch {
    // Somebody has typed it.
  }
  return { view: view || "now", of, set: new URLSearchParams(query) };
}

/** The address of a view. Settings that are empty are left out. */
export function link(view: string, of = "", set: Record<string, string> = {}): string {
  const query = new URLSearchParams(Object.entries(set).filter(([, v]) => v !== ""));
  const text = query.toString();
  return `#/${view}${of && `/${encodeURIComponent(of)}`}${text && `?${text}`}`;
}

/** Changes settings of the view, in place: going back leaves the view. */
export function change(set: Record<string, string>): void {
  const now = read();
  for (const [name, value] of Object.entries(set)) {
    if (value === "") now.set.delete(name);
    else now.set.set(name, value);
  }
  history.replaceState(null, "", link(now.view, now.of, Object.fromEntries(now.set)));
  dispatchEvent(new Event("hashchange"));
}

export function useAddress(): Address {
  const [address, set] = useState(read);
  useEffect(() => {
    const changed = () => set(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return address;
}
