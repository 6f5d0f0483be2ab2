import { useState } from "preact/hooks";
import type { Hospital } from "../../gen/vaccination/approval/v1/hospital_pb.js";
import { useValue } from "../hooks.ts";
import { type Found, useSearch } from "../hospitals.ts";
import { explain, type Key, shortDay, t } from "../i18n.ts";
import { kilometres, roughly, type Spot } from "../near.ts";
import { refusal } from "../refusal.ts";
import { go, place } from "../router.ts";
import { Button, Empty, Heading, Input, Link, Read } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import { Value } from "../value.ts";
import { mine } from "./mine.ts";

// In memory only, and nowhere in the address: it is still there when one comes back from a hospital's days.
const near = new Value<Spot | null>(null);

export function Hospitals({ insteadOf }: { insteadOf: string }) {
  const { query: parameters } = useValue(place);
  const [query, setQuery] = useState(parameters.get("name") ?? "");
  const spot = useValue(near);
  const found = useSearch(query, spot);
  const { all } = useValue(mine);
  const before = all?.find((one) => one.reservationId === insteadOf);

  // The search is in the address, so that it is still there when one comes back.
  const search = (text: string) => {
    setQuery(text);
    const next = new URLSearchParams(parameters);
    if (text) next.set("name", text);
    else next.delete("name");
    go(`/customer/book${next.size ? `?${next}` : ""}`, { replace: true });
  };

  return (
    <>
      <Heading
        before={
          <Link href={insteadOf ? `/customer/reservations/${insteadOf}` : "/customer"} class="back">
            {t("back")}
          </Link>
        }
      >
        {t(insteadOf ? "moveTitle" : "chooseHospital")}
      </Heading>
      {before && <p class="notice info">{t("moveNow", before.hospitalName, shortDay(before.date))}</p>}
      <Input
        label={t("searchHospital")}
        type="search"
        autocomplete="off"
        enterkeyhint="search"
        maxLength={100}
        value={query}
        onText={search}
      />
      <NearMe spot={spot} />
      <Read from={found}>
        {(data) => <Results found={data} insteadOf={insteadOf} before={before?.hospitalId ?? ""} />}
      </Read>
    </>
  );
}

/** Asks the browser where one is. */
function located(): Promise<Spot> {
  return new Promise((resolve, reject: (why: GeolocationPositionError) => void) => {
    navigator.geolocation.getCurrentPosition(({ coords }) => resolve(roughly(coords)), reject, {
      timeout: 15_000,
      maximumAge: 300_000,
    });
  });
}

function NearMe({ spot }: { spot: Spot | null }) {
  const [problem, setProblem] = useState<Key | null>(null);
  const locate = async () => {
    setProblem(null);
    try {
      near.set(await located());
    } catch (error) {
      const denied = (error as Partial<GeolocationPositionError>).code === 1; // PERMISSION_DENIED
      setProblem(denied ? "nearMeDenied" : "nearMeUnknown");
    }
  };
  return (
    <div class="near">
      {spot ? (
        <Button kind="quiet" onClick={() => near.set(null)}>
          {t("byName")}
        </Button>
      ) : (
        <Button onClick={locate}>{t("nearMe")}</Button>
      )}
      <p class={problem ? "" : "soft"} role="status">
        {problem ? t(problem) : spot ? t("nearMeFirst") : ""}
      </p>
    </div>
  );
}

function Results({ found, insteadOf, before }: { found: Found; insteadOf: string; before: string }) {
  const suffix = insteadOf ? `?instead=${insteadOf}` : "";
  const count = found.hospitals.length;
  if (!count && !found.query) return <Empty title={t("noHospitals")} />;
  const more = async () => {
    try {
      await found.more?.();
    } catch (error) {
      say(explain(refusal(error)));
    }
  };
  return (
    <>
      <p class="soft" role="status">
        {!count ? t("noHospital", found.query) : t(found.more ? "hospitalsFirst" : "hospitalsFound", count)}
      </p>
      <ul class="cards" data-query={found.query}>
        {found.hospitals.map((one) => (
          <li key={one.hospitalId}>
            <Link href={`/customer/book/${one.hospitalId}${suffix}`} class="card row">
              <span>
                <strong>{one.name}</strong>
                {one.hospitalId === before && <span class="soft">{t("sameHospital")}</span>}
                <Distance from={found.near} to={one} />
              </span>
              <Arrow />
            </Link>
          </li>
        ))}
      </ul>
      {found.more && <Button onClick={more}>{t("moreHospitals")}</Button>}
    </>
  );
}

function Distance({ from, to }: { from: Spot | null; to: Hospital }) {
  return from && to.location ? <span class="soft">{t("kilometres", kilometres(from, to.location))}</span> : null;
}

export function Arrow() {
  return (
    <svg class="arrow" viewBox="0 0 20 20" aria-hidden="true">
      <path d="M8 5l5 5-5 5" />
    </svg>
  );
}
