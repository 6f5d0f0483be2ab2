import { useMemo, useState } from "preact/hooks";
import { type Vaccination, VaccinationStatus } from "../../gen/vaccination/vaccinemgmt/v1/vaccination_pb.js";
import { CounterService } from "../../gen/vaccination/vaccinemgmt/v1/counter_service_pb.js";
import type { Lot } from "../../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import { dayIn, isDay, plusDays } from "../days.ts";
import { perform } from "../doing.ts";
import { useAll, useLoaded, useValue } from "../hooks.ts";
import { explain, hour, longDay, nameOf, number, t, vaccinationName, vaccineName } from "../i18n.ts";
import { go, place } from "../router.ts";
import { Act } from "../ui/act.tsx";
import { AsOf, Badge, Button, Dialog, Empty, Heading, Read, Table, type Tone } from "../ui/parts.tsx";
import { say } from "../ui/toast.tsx";
import { Administer, AssignLot } from "./dose.tsx";
import { counter, type Here, useLots } from "./staff.ts";
import { onReturn } from "./stock.ts";
import { effectsOf } from "./effects.ts";

const S = VaccinationStatus;
type Filter = "all" | "expected" | "arrived" | "given" | "waiting" | "other";
type Doing = { what: "administer" | "missed" | "assign"; booking: Vaccination };

function groupOf(one: Vaccination): Exclude<Filter, "all"> {
  if (one.status === S.ADMINISTERED) return "given";
  if (one.status !== S.WAITING && one.status !== S.COMPLETED) return "other";
  if (one.checkInTime) return "arrived";
  return one.status === S.WAITING ? "waiting" : "expected";
}

export function toneOf(one: Vaccination): Tone {
  switch (one.status) {
    case S.ADMINISTERED:
      return "good";
    case S.COMPLETED:
      return "info";
    case S.WAITING:
      return "wait";
    case S.UNSERVED:
      return "bad";
    default:
      return "over";
  }
}

/** Who has a booking on a day, and what is done with them at the counter. */
export function DayList({ hospital }: Here) {
  const { query } = useValue(place);
  const today = dayIn(hospital.timeZone, Date.now());
  const day = isDay(query.get("day") ?? "") ? (query.get("day") ?? today) : today;
  const [search, setSearch] = useState("");
  const [filter, setFilter] = useState<Filter>("all");
  const [act, setAct] = useState<Doing | null>(null);
  const [who, setWho] = useState<string | null>(null);
  const lots = useLots(hospital.hospitalId);
  // It is not read by itself again and again: every reading of this list is recorded as an access to personal data.
  const list = useAll(
    (which, signal) => counter.listDay({ hospitalId: hospital.hospitalId, date: day, ...which }, { signal }),
    (page) => page.vaccinations,
    [hospital.hospitalId, day],
  );
  const [changed, setChanged] = useState<Record<string, Vaccination>>({});
  const rows = useMemo(
    () =>
      list.data?.map((one) =>
        (changed[one.reservationId]?.version ?? 0) > one.version ? (changed[one.reservationId] ?? one) : one,
      ),
    [list.data, changed],
  );
  const isToday = day === today;
  const refresh = () => Promise.all([list.reload(), lots.reload()]);
  const to = (date: string) => go(date === today ? "/manager" : `/manager?day=${date}`);
  const onChanged = (vaccination: Vaccination | undefined) => {
    if (vaccination) setChanged((before) => ({ ...before, [vaccination.reservationId]: vaccination }));
    setAct(null);
    void lots.reload();
  };
  const checkIn = async (one: Vaccination) => {
    const title = t("checkIn");
    const answer = await perform(
      CounterService.method.checkIn,
      { reservationId: one.reservationId },
      `${title} ${one.customerId}`,
    );
    if ("answer" in answer) {
      onChanged(answer.answer.vaccination);
      say(`${one.customerId}: ${t("arrived")}`);
    } else if ("refused" in answer) say(`${one.customerId}: ${explain(answer.refused)}`);
  };

  return (
    <>
      <Heading>{isToday ? `${t("today")}, ${longDay(day)}` : longDay(day)}</Heading>
      <div class="tools-row">
        <div class="switcher">
          <Button onClick={() => to(plusDays(day, -1))} aria-label={t("previousDay")}>
            ‹
          </Button>
          <input
            type="date"
            aria-label={t("day")}
            value={day}
            onChange={(event) => isDay(event.currentTarget.value) && to(event.currentTarget.value)}
          />
          <Button onClick={() => to(plusDays(day, 1))} aria-label={t("nextDay")}>
            ›
          </Button>
          {!isToday && <Button onClick={() => to(today)}>{t("today")}</Button>}
        </div>
        <input
          class="search"
          type="search"
          aria-label={t("searchDay")}
          placeholder={t("searchDay")}
          value={search}
          onInput={(event) => setSearch(event.currentTarget.value)}
        />
        <AsOf at={list.at} zone={hospital.timeZone} onRefresh={refresh} />
      </div>
      <Read from={{ ...list, data: rows } as typeof list}>
        {(all) => {
          const found = all.filter((one) => (filter === "all" || groupOf(one) === filter) && contains(one, search));
          const count = (group: Filter) =>
            group === "all" ? all.length : all.filter((one) => groupOf(one) === group).length;
          return (
            <>
              <Filters chosen={filter} count={count} onChoose={setFilter} />
              {!all.length && !search && <Empty title={t("noneOnDay")} />}
              {!found.length && (all.length > 0 || search !== "") && (
                <Empty title={t("noMatch")}>
                  {search.trim() && (
                    <Button onClick={() => setWho(search.trim())}>{t("findElsewhere", search.trim())}</Button>
                  )}
                </Empty>
              )}
              {found.length > 0 && (
                <Table
                  caption={t("dayList")}
                  head={[
                    t("customer"),
                    t("status"),
                    t("doseColumn"),
                    t("arrivedAt"),
                    <span class="unseen">{t("what")}</span>,
                  ]}
                >
                  {found.map((one) => (
                    <tr key={one.reservationId} data-reservation={one.reservationId}>
                      <th scope="row">
                        {one.customerId}
                        <span class="soft id-short">{one.reservationId.slice(0, 8)}</span>
                      </th>
                      <td>
                        <State one={one} />
                      </td>
                      <td class="words">
                        <DoseOf one={one} />
                      </td>
                      <td class="nowrap">{one.checkInTime ? hour(one.checkInTime.seconds, hospital.timeZone) : "–"}</td>
                      <td>
                        <div class="row-actions">
                          <Actions
                            one={one}
                            isToday={isToday}
                            isPast={day < today}
                            onCheckIn={() => checkIn(one)}
                            onAct={(what) => setAct({ what, booking: one })}
                          />
                        </div>
                      </td>
                    </tr>
                  ))}
                </Table>
              )}
            </>
          );
        }}
      </Read>
      {act?.what === "administer" && (
        <Administer booking={act.booking} lots={lots} onDone={onChanged} onClose={() => setAct(null)} />
      )}
      {act?.what === "assign" && (
        <AssignLot booking={act.booking} lots={lots} onDone={onChanged} onClose={() => setAct(null)} />
      )}
      {act?.what === "missed" && (
        <Missed booking={act.booking} lots={lots.data ?? []} onDone={onChanged} onClose={() => setAct(null)} />
      )}
      {who !== null && <Elsewhere hospital={hospital} who={who} onClose={() => setWho(null)} />}
    </>
  );
}

function contains(one: Vaccination, search: string): boolean {
  const words = search.trim().toLowerCase();
  return (
    !words ||
    [one.customerId, one.reservationId, one.dose?.lotNumber ?? ""].some((text) => text.toLowerCase().includes(words))
  );
}

function Filters({
  chosen,
  count,
  onChoose,
}: {
  chosen: Filter;
  count: (group: Filter) => number;
  onChoose: (group: Filter) => void;
}) {
  const names: Record<Filter, string> = {
    all: t("all"),
    expected: vaccinationName("COMPLETED"),
    arrived: t("arrived"),
    given: vaccinationName("ADMINISTERED"),
    waiting: vaccinationName("WAITING"),
    other: t("otherState"),
  };
  return (
    <div class="chips" role="group" aria-label={t("filter")}>
      {(Object.keys(names) as Filter[]).map((group) => (
        <button key={group} type="button" class="chip" aria-pressed={group === chosen} onClick={() => onChoose(group)}>
          {names[group]} <span class="number">{number(count(group))}</span>
        </button>
      ))}
    </div>
  );
}

export function State({ one }: { one: Vaccination }) {
  return (
    <span class="badges">
      <Badge tone={toneOf(one)}>{vaccinationName(nameOf(S, one.status))}</Badge>
      {one.checkInTime && groupOf(one) === "arrived" && <Badge tone="good">{t("arrived")}</Badge>}
    </span>
  );
}

export function DoseOf({ one }: { one: Vaccination }) {
  if (!one.dose)
    return <span class="soft">{one.requestedVaccineCode ? vaccineName(one.requestedVaccineCode) : "–"}</span>;
  return (
    <>
      {vaccineName(one.dose.vaccineCode)}
      <span class="soft id-short">{one.dose.lotNumber}</span>
    </>
  );
}

function Actions({
  one,
  isToday,
  isPast,
  onCheckIn,
  onAct,
}: {
  one: Vaccination;
  isToday: boolean;
  isPast: boolean;
  onCheckIn: () => Promise<void>;
  onAct: (what: Doing["what"]) => void;
}) {
  const open = one.status === S.WAITING || one.status === S.COMPLETED;
  const late = one.status === S.MISSED && isToday;
  return (
    <>
      {isToday && open && !one.checkInTime && (
        <Button class="small" onClick={onCheckIn}>
          {t("checkIn")}
        </Button>
      )}
      {isToday && (open || late) && (
        <Button kind={one.checkInTime ? "main" : "plain"} class="small" onClick={() => onAct("administer")}>
          {t("administer")}
        </Button>
      )}
      {open && !isPast && (
        <Button kind="quiet" class="small" onClick={() => onAct("assign")}>
          {t("assign")}
        </Button>
      )}
      {(isToday || isPast) && open && (
        <Button kind="quiet" class="small" onClick={() => onAct("missed")}>
          {t("missed")}
        </Button>
      )}
    </>
  );
}

function Missed({
  booking,
  lots,
  onDone,
  onClose,
}: {
  booking: Vaccination;
  lots: readonly Lot[];
  onDone: (one: Vaccination | undefined) => void;
  onClose: () => void;
}) {
  const title = `${booking.customerId}: ${t("missedTitle")}`;
  return (
    <Act
      title={title}
      label={t("missed")}
      danger
      effects={[t("missedEffect"), ...effectsOf(onReturn(booking.dose, lots))]}
      run={() => perform(CounterService.method.markMissed, { reservationId: booking.reservationId }, title)}
      onDone={(response) => onDone(response.vaccination)}
      onClose={onClose}
    />
  );
}

function Elsewhere({ hospital, who, onClose }: Here & { who: string; onClose: () => void }) {
  const found = useLoaded(
    (signal) => counter.findBookings({ hospitalId: hospital.hospitalId, customerId: who }, { signal }),
    [who],
  );
  return (
    <Dialog title={t("elsewhere", who)} onClose={onClose} wide>
      <Read from={found}>
        {({ vaccinations }) =>
          vaccinations.length ? (
            <ul class="cards">
              {vaccinations.map((one) => (
                <li key={one.reservationId} class="card row">
                  <span>
                    <strong>{longDay(one.date)}</strong>
                    <span class="soft">{one.reservationId}</span>
                  </span>
                  <State one={one} />
                  <Button
                    class="small"
                    onClick={() => {
                      onClose();
                      go(`/manager?day=${one.date}`);
                    }}
                  >
                    {t("open")}
                  </Button>
                </li>
              ))}
            </ul>
          ) : (
            <Empty title={t("noneElsewhere")} />
          )
        }
      </Read>
    </Dialog>
  );
}
