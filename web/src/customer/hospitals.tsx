import { useState } from "preact/hooks";
import { useValue } from "../hooks.ts";
import { useHospitals } from "../hospitals.ts";
import { shortDay, t } from "../i18n.ts";
import { go, place } from "../router.ts";
import { matching } from "../search.ts";
import { Button, Empty, Field, Heading, Link, Read } from "../ui/parts.tsx";
import { mine } from "./mine.ts";

const PAGE = 20;

export function Hospitals({ insteadOf }: { insteadOf: string }) {
  const hospitals = useHospitals();
  const { query: parameters } = useValue(place);
  const [query, setQuery] = useState(parameters.get("name") ?? "");
  const [count, setCount] = useState(PAGE);
  const { all } = useValue(mine);
  const before = all?.find((one) => one.reservationId === insteadOf);
  const suffix = insteadOf ? `?instead=${insteadOf}` : "";

  // The search is in the address, so that it is still there when one comes back.
  const search = (text: string) => {
    setQuery(text);
    setCount(PAGE);
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
      <Field label={t("searchHospital")}>
        {(id) => (
          <input
            id={id}
            type="search"
            autocomplete="off"
            enterkeyhint="search"
            value={query}
            onInput={(event) => search(event.currentTarget.value)}
          />
        )}
      </Field>
      <Read from={hospitals}>
        {(known) => {
          const found = matching(known, query);
          if (!known.length) return <Empty title={t("noHospitals")} />;
          return (
            <>
              <p class="soft" role="status">
                {found.length ? t("hospitalsFound", found.length) : t("noHospital", query)}
              </p>
              <ul class="cards">
                {found.slice(0, count).map((one) => (
                  <li key={one.hospitalId}>
                    <Link href={`/customer/book/${one.hospitalId}${suffix}`} class="card row">
                      <span>
                        <strong>{one.name}</strong>
                        {one.hospitalId === before?.hospitalId && <span class="soft">{t("sameHospital")}</span>}
                      </span>
                      <Arrow />
                    </Link>
                  </li>
                ))}
              </ul>
              {found.length > count && (
                <Button
                  onClick={() => {
                    setCount(count + PAGE);
                  }}
                >
                  {t("showMore", found.length - count)}
                </Button>
              )}
            </>
          );
        }}
      </Read>
    </>
  );
}

export function Arrow() {
  return (
    <svg class="arrow" viewBox="0 0 20 20" aria-hidden="true">
      <path d="M8 5l5 5-5 5" />
    </svg>
  );
}
