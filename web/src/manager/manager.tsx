import type { Person } from "../session.ts"; export function Manager(_: {person: Person}) { return <p>manager</p>; }
