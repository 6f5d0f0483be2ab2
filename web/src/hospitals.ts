import { useEffect, useRef, useState } from "preact/hooks";
import type { Hospital } from "../gen/vaccination/approval/v1/hospital_pb.js";
import { allPages, hospitals } from "./api.ts";
import { useLoaded, type Loaded } from "./hooks.ts";
import type { Spot } from "./near.ts";

const FRESH = 5 * 60_000;
const PAGE = 50;
const PAUSE = 250; // milliseconds without a further key before the service is asked
let kept: { hospitals: Hospital[]; at: number } | null = null;
const seen = new Map<string, Hospital>();

/** All hospitals, for those who work at any of them. */
async function allHospitals(signal: AbortSignal): Promise<Hospital[]> {
  if (kept && Date.now() - kept.at < FRESH) return kept.hospitals;
  const all = await allPages(
    (which) => hospitals.listHospitals(which, { signal }),
    (page) => page.hospitals,
  );
  kept = { hospitals: all, at: Date.now() };
  return all;
}

export function useHospitals(): Loaded<Hospital[]> {
  return useLoaded(allHospitals, []);
}

/** One hospital; null when there is none of that id. */
export function useHospital(hospitalId: string): Loaded<Hospital | null> {
  return useLoaded(
    async (signal) => {
      let pageToken = "";
      while (!seen.has(hospitalId)) {
        // Its id may be a part of others' ids.
        const page = await hospitals.listHospitals({ query: hospitalId, pageSize: PAGE, pageToken }, { signal });
        for (const one of page.hospitals) seen.set(one.hospitalId, one);
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      return seen.get(hospitalId) ?? null;
    },
    [hospitalId],
  );
}

/** What is looked for: words of a name, and where from. */
interface Wanted {
  query: string;
  near: Spot | null;
}

interface Page {
  of: Wanted;
  hospitals: Hospital[];
  next: string;
}

/** What a search has found so far. */
export interface Found extends Wanted {
  hospitals: Hospital[];
  /** Reads the next page; null when there is none. */
  more: (() => Promise<void>) | null;
}

async function page(of: Wanted, pageToken: string, signal?: AbortSignal): Promise<Page> {
  const request = { query: of.query, pageSize: PAGE, pageToken, ...(of.near ? { near: of.near } : {}) };
  const answer = await hospitals.listHospitals(request, signal ? { signal } : {});
  for (const one of answer.hospitals) seen.set(one.hospitalId, one);
  return { of, hospitals: answer.hospitals, next: answer.nextPageToken };
}

/** Hospitals page by page. What was found before stays on the screen until there is an answer for other words. */
export function useSearch(query: string, near: Spot | null): Loaded<Found> {
  const wanted = useRef<Wanted>({ query, near });
  const { data: first, ...loaded } = useLoaded((signal) => page(wanted.current, "", signal), []);
  const [rest, setRest] = useState<{ after: Page; pages: Page[] } | null>(null);
  useEffect(() => {
    const before = wanted.current;
    if (query === before.query && near === before.near) return;
    const timer = setTimeout(
      () => {
        wanted.current = { query, near };
        void loaded.reload();
      },
      near === before.near ? PAUSE : 0,
    );
    return () => clearTimeout(timer);
  }, [query, near]);
  if (!first) return loaded;
  const pages = [first, ...(rest?.after === first ? rest.pages : [])];
  const last = pages.at(-1) ?? first;
  const more = async () => {
    const next = await page(last.of, last.next);
    setRest({ after: first, pages: [...pages.slice(1), next] });
  };
  const data = { ...first.of, hospitals: pages.flatMap((one) => one.hospitals), more: last.next ? more : null };
  return { ...loaded, data };
}
