import type { Hospital } from "../gen/vaccination/approval/v1/hospital_pb.js";
import { hospitals } from "./api.ts";
import { useLoaded, type Loaded } from "./hooks.ts";

const FRESH = 5 * 60_000;
let kept: { hospitals: Hospital[]; at: number } | null = null;

/** All hospitals. There is no search by name at the services; names are few enough to be searched here. */
export async function allHospitals(signal?: AbortSignal): Promise<Hospital[]> {
  if (kept && Date.now() - kept.at < FRESH) return kept.hospitals;
  const all: Hospital[] = [];
  let pageToken = "";
  do {
    const page = await hospitals.listHospitals({ pageSize: 1000, pageToken }, signal ? { signal } : {});
    all.push(...page.hospitals);
    pageToken = page.nextPageToken;
  } while (pageToken);
  kept = { hospitals: all, at: Date.now() };
  return all;
}

export function useHospitals(): Loaded<Hospital[]> {
  return useLoaded(allHospitals, []);
}
